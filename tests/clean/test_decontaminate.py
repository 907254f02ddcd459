"""`decontaminate`: matches equal a plain twin, boilerplate is set aside, and all of it is shown."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo import _core
from clair_apo.clean import decontaminate
from clair_apo.errors import ClairError, UsageError
from cli import clair, start


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = [word.lower() for word in _core.words(text)]
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def twin(
    items: list[str], rows: list[dict[str, str]], n: int, share: float, boilerplate: float
) -> set[int]:
    """The rows that hold an item, by sets of n-grams."""
    known = {tuple(w.lower() for w in _core.words(item)): item for item in items}
    in_items = Counter(gram for item in known.values() for gram in grams(item, n))
    in_rows = Counter(gram for row in rows for gram in set().union(*(grams(t, n) for t in row.values())))
    most = max(10, int(boilerplate * len(rows)))
    common = {g for g, count in in_items.items() if count > 10} | {
        g for g, c in in_rows.items() if c > most
    }
    found = set()
    for number, row in enumerate(rows):
        for text in row.values():
            words = tuple(w.lower() for w in _core.words(text))
            if n / 2 <= len(words) < n and words in known:
                found.add(number)
            for item in known.values():
                live = grams(item, n) - common
                shared = grams(text, n) & live
                if shared and len(shared) >= share * len(live):
                    found.add(number)
    return found


WORDS = st.lists(st.sampled_from(["The", "the", "cat", "Sat", "on", ".", "Ä", "ä", "mat"]), max_size=9)
TEXT = WORDS.map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(TEXT, max_size=30).filter(lambda found: any(found)),
    rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}), max_size=30),
    n=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    boilerplate=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_as_the_plain_twin(
    items: list[str], rows: list[dict[str, str]], n: int, share: float, boilerplate: float
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = pa.schema([(side, pa.string()) for side in ("prompt", "chosen", "rejected")])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "in.parquet", row_group_size=7)
        bench = lines(folder / "bench.jsonl", [{"q": item} for item in items])
        found = decontaminate(
            folder / "in.parquet",
            bench,
            folder / "out.parquet",
            ngram=n,
            share=share,
            boilerplate=boilerplate,
            matches=folder / "matches.parquet",
        )
        hits = twin(items, rows, n, share, boilerplate)
        assert pq.read_table(folder / "out.parquet").to_pylist() == [
            row for number, row in enumerate(rows) if number not in hits
        ]
        assert found["contaminated"] == len(hits)
        assert found["rows_in"] == found["rows_out"] + found["contaminated"]
        told = pq.read_table(folder / "matches.parquet").to_pylist()
        assert {match["row"] for match in told} == hits
        assert len(told) == found["matches"]
        for match in told:
            text = rows[match["row"]][match["side"]]
            assert match["words"] in match["context"] in text
            assert match["item_text"] == items[match["item"]]
            assert grams(match["words"], n) <= grams(match["item_text"], n)
            assert match["share"] == match["shared"] / match["total"] >= share


PLANET = "Which planet of the solar system has the largest number of known moons in it?"


def pair(prompt: str, chosen: str = "Well, that is so.", rejected: str = "No.") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        pair("What is the tallest building in the whole wide world?"),
        pair(f"Question: {PLANET.upper()} Answer:"),
        pair("Tell me a story.", chosen=f"He asked: {PLANET}"),
        pair("Which planet of the solar system has rings?"),
        pair("Who wrote Hamlet?"),
    ]
    return lines(tmp_path / "in.jsonl", [{"id": f"r{n}", **row} for n, row in enumerate(rows)])


def test_what_the_command_says(table: Path, tmp_path: Path) -> None:
    bench = lines(
        tmp_path / "bench.jsonl",
        [
            {
                "id": "q1",
                "question": "Nothing that anybody here has ever asked for, at any time.",
                "answer": "A",
            },
            {"id": "q2", "question": PLANET, "choices": ["Saturn", "Jupiter"], "answer": "Saturn"},
            {"id": "q3", "question": "who wrote HAMLET ?", "answer": "Shakespeare"},
        ],
    )
    done = clair(
        *("decontaminate", table, "--against", bench, "--output", tmp_path / "out.jsonl"),
        *("--matches", tmp_path / "m.jsonl", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    counts = {k: found[k] for k in ("rows_in", "rows_out", "contaminated", "skipped", "matches")}
    assert counts == {"rows_in": 5, "rows_out": 2, "contaminated": 3, "skipped": 0, "matches": 3}
    (about,) = found["benchmarks"]
    # Ids, answers and the two choices together have too few words to tell.
    assert about == {
        "file": str(bench),
        "items": 3,
        "unreadable": 0,
        "texts": 10,
        "too_short": 7,
        "contaminated": 3,
        "texts_found": 2,
    }
    source = table.read_text().splitlines()
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [source[0], source[3]]
    told = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    shown = [(m["row"], m["id"], m["side"], m["item"], m["column"], m["shared"], m["total"]) for m in told]
    assert shown == [
        (1, "r1", "prompt", 1, "question", 9, 9),
        (2, "r2", "chosen", 1, "question", 9, 9),
        (4, "r4", "prompt", 2, "question", 1, 1),
    ]
    assert told[0]["words"] == PLANET.upper()
    assert told[0]["context"] == f"Question: {PLANET.upper()} Answer:"
    view = clair("decontaminate", table, "--against", bench, "--output", tmp_path / "out.jsonl").stdout
    assert f"Question: [{PLANET.upper()}] Answer:" in view
    assert "row 1 (r1), prompt: 9 of 9 n-grams of item 1 `question`" in view
    assert "3 items with 10 texts; 3 rows hold 2 of these" in view
    assert "7 texts have too few words" in view


def test_sides_columns_and_shares(table: Path, tmp_path: Path) -> None:
    bench = lines(tmp_path / "b.jsonl", [{"question": PLANET, "other": "Tell me a story."}])

    def left(**flags: Any) -> list[str]:
        decontaminate(table, bench, tmp_path / "out.jsonl", **flags)
        return [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    assert left() == ["r0", "r3", "r4"]
    assert left(on="prompt") == ["r0", "r3", "r4"]  # r2 by `other`
    assert left(on="prompt", against_column=["question"]) == ["r0", "r2", "r3", "r4"]
    assert left(on="rejected") == ["r0", "r1", "r2", "r3", "r4"]
    assert left(on="chosen") == ["r0", "r1", "r3", "r4"]
    # "Which planet of the solar system has" is seven words: one 7-gram of nine.
    assert left(ngram=7, share=0) == ["r0", "r4"]
    assert left(ngram=7, share=0.2) == ["r0", "r3", "r4"]


def test_boilerplate_is_set_aside_and_told(tmp_path: Path) -> None:
    licence = "Permission is hereby granted, free of charge, to any person obtaining a copy."
    rows = [pair(f"Explain number {n}.", chosen=f"{licence} It is {n}.") for n in range(30)]
    rows.append(pair("x", chosen="The mitochondrion is the powerhouse of the cell, as everybody knows."))
    source = lines(tmp_path / "in.jsonl", rows)
    bench = lines(
        tmp_path / "b.jsonl",
        [{"q": licence}, {"q": "The mitochondrion is the powerhouse of the cell, as everybody knows."}],
    )
    found = decontaminate(source, bench, tmp_path / "out.jsonl")
    assert (found["contaminated"], found["rows_out"]) == (1, 30)
    aside = found["boilerplate"]
    assert (aside["ngrams"], aside["rows_beyond"]) == (9, 10)
    assert aside["phrases"] == [
        {
            "words": "permission is hereby granted , free of charge , to any person obtaining a copy .",
            "items": 1,
            "rows": 30,
        }
    ]
    view = clair("decontaminate", source, "--against", bench, "--output", tmp_path / "o.jsonl").stdout
    assert "set aside as boilerplate: 9 of " in view
    assert "30 rows, 1 items: permission is hereby granted" in view
    found = decontaminate(source, bench, tmp_path / "out.jsonl", boilerplate=1)
    assert found["contaminated"] == 31
    # A template of many items is boilerplate too, however seldom it is in the rows.
    template = "Choose the right answer of the four below and explain why it is right"
    bench = lines(tmp_path / "t.jsonl", [{"q": f"{template}: {n}"} for n in range(12)])
    source = lines(tmp_path / "in2.jsonl", [pair(f"{template}: 7"), pair(template), pair("y")])
    assert decontaminate(source, bench, tmp_path / "out.jsonl")["contaminated"] == 1


def test_benchmarks_of_every_kind(table: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": PLANET}]
    pq.write_table(pa.table({"messages": [messages], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(f'id,question\n1,"{PLANET}"\n')
    (tmp_path / "c.txt").write_text(f"Something else that nobody ever asks\n{PLANET}\n")
    lines(tmp_path / "d.jsonl", [{"deep": {"er": [PLANET], "role": "user"}}, "broken"])
    names = [tmp_path / name for name in ("a.parquet", "b.csv", "c.txt", "d.jsonl")]
    for name in names:
        found = decontaminate(table, name, tmp_path / "out.jsonl")
        assert found["contaminated"] == 2, name
    # The same text in several benchmarks counts for each of them.
    found = decontaminate(table, names, tmp_path / "out.jsonl")
    assert [bench["contaminated"] for bench in found["benchmarks"]] == [2, 2, 2, 2]
    assert [bench["items"] for bench in found["benchmarks"]] == [1, 1, 2, 2]
    assert found["benchmarks"][3]["unreadable"] == 1
    assert found["contaminated"] == 2


def test_prompts_before_they_are_paid_for(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "prompts_llama3_8b.parquet"
    prompts = pq.read_table(source)["prompt"].to_pylist()
    bench = lines(tmp_path / "b.jsonl", [{"q": max(prompts[:50], key=len)}])
    found = decontaminate(source, bench, tmp_path / "out.parquet")
    assert found["on"] == ["prompt"]
    assert found["contaminated"] >= 1
    assert found["first_matches"][0]["row"] == prompts.index(max(prompts[:50], key=len))
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.equals(pq.read_schema(source), check_metadata=True)
    with pytest.raises(ClairError, match="holds no preference pairs, so --on chosen"):
        decontaminate(source, bench, tmp_path / "out.parquet", on="chosen")


def test_real_pairs_against_themselves(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "pairs_revision.parquet"
    found = decontaminate(source, source, tmp_path / "out.parquet")
    assert found["rows_out"] <= 5  # what is too short, or boilerplate as a whole
    assert sum(b["contaminated"] for b in found["benchmarks"]) == found["contaminated"]


def test_rows_that_nobody_can_call_clean(tmp_path: Path) -> None:
    rows = [pair("p"), {**pair("q"), "chosen": None}]
    source = lines(tmp_path / "in.jsonl", rows)
    with source.open("a") as file:
        file.write("broken\n")
    bench = lines(tmp_path / "b.jsonl", [{"q": PLANET}])
    found = decontaminate(source, bench, tmp_path / "out.jsonl")
    assert (found["rows_in"], found["rows_out"], found["skipped"]) == (3, 1, 2)
    assert {k: v["first_row"] for k, v in found["skipped_reasons"].items()} == {"null": 1, "unreadable": 2}
    # For the prompt alone, the second row is as good as the first.
    found = decontaminate(source, bench, tmp_path / "out.jsonl", on="prompt")
    assert (found["rows_out"], found["skipped"]) == (2, 1)


def test_hostile_text_is_harmless_on_screen(tmp_path: Path) -> None:
    evil = "one two three four \x1b[31mfive six seven eight nine ten"
    source = lines(tmp_path / "in.jsonl", [{"id": "\x1b]0;x\x07", **pair(evil)}])
    bench = lines(tmp_path / "b.jsonl", [{"q\x1b[2J": evil}])
    done = clair("decontaminate", source, "--against", bench, "--output", tmp_path / "o.jsonl")
    assert "␛[31mfive" in done.stdout
    assert "\x1b" not in done.stdout
    done = clair("decontaminate", source, "--against", bench, "--output", tmp_path / "o.jsonl", "--json")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["contaminated"] == 1


def test_flags_of_several_values_in_a_config(table: Path, tmp_path: Path) -> None:
    bench = lines(tmp_path / "b.jsonl", [{"q": PLANET, "other": "Tell me a story."}])
    (tmp_path / "c.yaml").write_text(f"against: [{bench}]\nagainst-column: q\noutput: {tmp_path}/o.jsonl\n")
    done = clair("decontaminate", table, "--config", tmp_path / "c.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["contaminated"] == 2
    assert json.loads(done.stdout)["benchmarks"][0]["texts"] == 1


def test_mistakes(table: Path, tmp_path: Path) -> None:
    bench = lines(tmp_path / "b.jsonl", [{"q": PLANET, "n": 1}])
    output = tmp_path / "out.jsonl"
    with pytest.raises(ClairError, match=r"b\.jsonl: no column 'x'; it has q, n"):
        decontaminate(table, bench, output, against_column=["x"])
    with pytest.raises(ClairError, match="holds no text"):
        decontaminate(table, bench, output, against_column=["n"])
    with pytest.raises(ClairError, match="no such file"):
        decontaminate(table, tmp_path / "nope.jsonl", output)
    with pytest.raises(UsageError, match="--ngram is at least 1"):
        decontaminate(table, bench, output, ngram=0)
    with pytest.raises(UsageError, match="named for two things"):
        decontaminate(table, bench, output, matches=output)
    with pytest.raises(UsageError, match="also the input"):
        decontaminate(table, bench, table)
    before = bench.read_bytes()
    with pytest.raises(UsageError, match="also a benchmark"):
        decontaminate(table, bench, output, matches=bench)
    assert bench.read_bytes() == before
    assert not output.exists()


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    text = " ".join(f"w{n % 500}" for n in range(400))
    pq.write_table(
        pa.table({"prompt": [text] * 60_000, "chosen": [text] * 60_000, "rejected": [text] * 60_000}),
        tmp_path / "in.parquet",
    )
    bench = lines(tmp_path / "b.jsonl", [{"q": text}])
    run = start(
        "decontaminate", tmp_path / "in.parquet", "--against", bench, "--output", tmp_path / "o.parquet"
    )
    time.sleep(1.2)
    os.kill(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert "interrupted" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.jsonl", "in.parquet"]
