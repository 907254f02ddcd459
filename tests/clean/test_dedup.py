"""`clair-apo dedup` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clair_apo.clean import dedup, duplicates
from clair_apo.errors import ClairError, UsageError
from cli import clair, environment, rows

BASE = [f"word{i}" for i in range(60)]


def edited(*places: int, base: list[str] = BASE) -> str:
    """The base text with other words in some places."""
    return " ".join(f"other{i}" if i in places else word for i, word in enumerate(base))


def write(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def pairs(path: Path, prompts: list[Any], **more: list[Any]) -> Path:
    n = len(prompts)
    filled = {"chosen": [f"good {i}" for i in range(n)], "rejected": [f"bad {i}" for i in range(n)], **more}
    return write(path, prompt=prompts, **filled)


def test_counts_order_and_clusters(tmp_path: Path) -> None:
    prompts = [edited(), "Hello  there", edited(30), "hello\nTHERE ", None, edited(10, 30, 50), ""]
    source = pairs(tmp_path / "in.parquet", prompts, id=list("abcdefg"))
    out, gone = tmp_path / "out.parquet", tmp_path / "gone.parquet"
    done = clair("dedup", source, "--output", out, "--clusters", gone, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert [r["id"] for r in rows(out)] == ["a", "b", "e", "f", "g"]
    assert pq.read_schema(out).equals(pq.read_schema(source))
    counts = ("rows_in", "rows_out", "exact", "near", "groups", "without_text", "unreadable")
    assert [found[name] for name in counts] == [7, 5, 1, 1, 2, 2, 0]
    assert (found["bands"], found["band_rows"], found["threshold"]) == (21, 6, 0.8)
    assert found["recall"] >= 0.99
    # 56 shingles each, of which the changed word stands in five.
    assert rows(gone) == [
        {"row": 2, "id": "c", "kept_row": 0, "kept_id": "a", "jaccard": 51 / 61, "reason": "near"},
        {"row": 3, "id": "d", "kept_row": 1, "kept_id": "b", "jaccard": 1.0, "reason": "exact"},
    ]
    shown = clair("dedup", source, "--output", out, "--clusters", tmp_path / "gone.jsonl")
    assert "no text" in shown.stdout
    assert "21 bands of 6" in shown.stderr
    lines = [json.loads(line) for line in (tmp_path / "gone.jsonl").read_text().splitlines()]
    assert lines == rows(gone)


def test_exact_only(tmp_path: Path) -> None:
    source = pairs(tmp_path / "in.parquet", ["A b!", "a  b!", edited(), edited(1), "a b !"])
    found = dedup(source, tmp_path / "out.parquet", exact=True)
    assert (found["rows_out"], found["exact"], found["near"], found["recall"]) == (4, 1, 0, None)
    # White space between a word and a mark is no word: the same shingles, but not the same text.
    found = dedup(source, tmp_path / "out.parquet")
    assert (found["rows_out"], found["exact"], found["near"]) == (2, 1, 2)


def test_which_text_is_compared(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.parquet",
        prompt=["p", "p", "q", "p"],
        chosen=["c", "d", "c", "c"],
        rejected=["r", "r", "s", "r"],
    )
    for on, kept in (("prompt", [0, 2]), ("chosen", [0, 1]), ("rejected", [0, 2]), ("pair", [0, 1, 2])):
        found = dedup(source, tmp_path / "out.parquet", on=on)  # type: ignore[arg-type]
        assert found["rows_out"] == len(kept)
        assert rows(tmp_path / "out.parquet") == [rows(source)[i] for i in kept]


def test_the_keep_rules(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.parquet",
        prompt=[edited(), edited(3) + " end", edited(4), edited(5)[2:], "x"],
        chosen=["aaaa", "same", "aaab", "abcd", "y"],
        rejected=["bbbb", "same", "aaaa", "abzz", "z"],
    )
    out = tmp_path / "out.parquet"

    def kept(keep: Any) -> list[str]:
        dedup(source, out, keep=keep, threshold=0.6)
        return [row["chosen"] for row in rows(out)]

    assert kept("first") == ["aaaa", "y"]
    assert kept("most-contrastive") == ["aaab", "y"]
    assert kept("shortest") == ["abcd", "y"]
    # Identical answers show no preference: they stay only where nothing else does.
    other = write(tmp_path / "two.parquet", prompt=["p", "p"], chosen=["s", "a"], rejected=["s", "b"])
    dedup(other, out, keep="most-contrastive")
    assert [row["chosen"] for row in rows(out)] == ["a"]


def test_ties_are_broken_by_the_text_and_then_by_the_pair(tmp_path: Path) -> None:
    source = pairs(tmp_path / "in.parquet", ["b a", "B a", "B  a"])
    out = tmp_path / "out.parquet"
    dedup(source, out, keep="shortest")
    assert [row["prompt"] for row in rows(out)] == ["B a"]
    stay = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        answers = [["c1", "c2", "c3"][i] for i in order]
        same = pairs(tmp_path / "in.parquet", ["p"] * 3, chosen=answers, rejected=["r"] * 3)
        dedup(same, out, keep="shortest")
        stay |= {row["chosen"] for row in rows(out)}
    assert len(stay) == 1


def test_never_through_a_chain(tmp_path: Path) -> None:
    chain = [edited(), edited(20), edited(20, 40)]
    source = pairs(tmp_path / "in.parquet", chain)
    found = dedup(source, tmp_path / "out.parquet")
    assert [row["prompt"] for row in rows(tmp_path / "out.parquet")] == [chain[0], chain[2]]
    assert found["near"] == 1


def test_short_odd_and_empty_texts(tmp_path: Path) -> None:
    texts = [
        "",
        " \n",
        "a",
        "A",
        "b",
        "漢字かな交じり文のテスト",
        "漢字かな交じり文のテスト ",
        "👍",
        "👎",
        "ÉCOLE",
        "école",
    ]
    source = pairs(tmp_path / "in.parquet", texts)
    dedup(source, tmp_path / "out.parquet")
    assert [r["prompt"] for r in rows(tmp_path / "out.parquet")] == [
        texts[i] for i in (0, 1, 2, 4, 5, 7, 8, 9)
    ]


def test_rows_without_such_a_text_stay(tmp_path: Path) -> None:
    lines = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": None, "rejected": "b"},
        {"prompt": " ", "chosen": "c", "rejected": "d"},
        {"prompt": "", "chosen": "A", "rejected": "d"},
    ]
    source = tmp_path / "in.jsonl"
    text = [json.dumps(line) for line in lines]
    source.write_text("\n".join([text[0], "{broken", *text[1:]]) + "\n")
    done = clair("dedup", source, "--output", tmp_path / "out.jsonl", "--on", "chosen")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_text() == "\n".join(text[:3]) + "\n"
    assert "no text" in done.stdout
    assert "one side is null; first: row 2" in done.stdout
    found = dedup(source, tmp_path / "out.jsonl", on="chosen")
    assert found["rows_in"] == 5
    assert (found["rows_out"], found["exact"], found["unreadable"], found["without_text"]) == (3, 1, 1, 1)
    # A prompt is compared although the answers beside it are broken; one without words is none.
    found = dedup(source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "\n".join([text[0], *text[2:]]) + "\n"
    assert (found["rows_out"], found["exact"], found["unreadable"], found["without_text"]) == (3, 1, 1, 2)


def test_a_table_of_prompts(tmp_path: Path) -> None:
    source = write(tmp_path / "p.parquet", prompt=["a b", None, "A  b", "c"], n=[1, 2, 3, 4])
    found = dedup(source, tmp_path / "out.parquet", clusters=tmp_path / "c.parquet")
    assert [row["n"] for row in rows(tmp_path / "out.parquet")] == [1, 2, 4]
    assert found["without_text"] == 1
    messages = [[{"role": "user", "content": text}] for text in ("one", "two", "ONE")]
    source = write(tmp_path / "m.parquet", prompt=messages)
    assert dedup(source, tmp_path / "out.parquet")["rows_out"] == 2
    lines = tmp_path / "p.jsonl"
    lines.write_text("".join(json.dumps({"instruction": t}) + "\n" for t in ("x", "X", "y")))
    dedup(lines, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == '{"instruction": "x"}\n{"instruction": "y"}\n'


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--threshold", "1.5"], 2, "from 0.1 to 1"),
        (["--shingle", "0"], 2, "from 1 to 1000"),
        (["--keep", "best"], 2, "invalid choice"),
        (["--seed", "-1"], 2, "from 0"),
    ],
)
def test_impossible_settings(tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    source = pairs(tmp_path / "in.parquet", ["p"])
    done = clair("dedup", source, "--output", tmp_path / "out.parquet", *arguments)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_files_that_hold_no_such_text(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(ClairError, match="neither preference pairs nor prompts"):
        dedup(write(tmp_path / "a.parquet", x=[1]), out)
    with pytest.raises(ClairError, match="no preference pairs"):
        dedup(write(tmp_path / "b.parquet", prompt=["p"]), out, on="chosen")
    with pytest.raises(ClairError, match="no row has a prompt"):
        dedup(write(tmp_path / "c.parquet", chosen=["p"], rejected=["q"]), out)
    with pytest.raises(UsageError, match="is also the input"):
        dedup(write(tmp_path / "d.parquet", prompt=["p"]), tmp_path / "d.parquet")
    assert not out.exists()


def test_an_empty_table(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", prompt=pa.array([], pa.string()))
    assert dedup(source, tmp_path / "out.parquet")["rows_out"] == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_an_unwritable_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs(tmp_path / "in.parquet", [edited(i) for i in range(40)])
    monkeypatch.setattr(duplicates, "MEMORY", 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(ClairError, match="TMPDIR names another folder"):
        dedup(source, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


INTERRUPTED = """
import os, signal, sys
from clair_apo import cli, progress
from clair_apo.clean import duplicates
duplicates.MEMORY = 0
def update(bar, file, rows, total):
    if file.endswith(sys.argv[1]) and rows > 2000:
        os.kill(os.getpid(), signal.SIGINT)
progress.Bar.update = update
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("during", ["in.parquet", "out.parquet"])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, during: str) -> None:
    source = pairs(tmp_path / "in.parquet", [edited(*range(i % 50)) + f" {i}" for i in range(10_000)])
    folder = tmp_path / "temporary"
    folder.mkdir()
    files = ["--output", tmp_path / "out.parquet", "--clusters", tmp_path / "c.parquet"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, during, "dedup", source, *files],
        env=environment(TMPDIR=str(folder)),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "clair-apo: interrupted\n")
    assert os.listdir(folder) == []
    assert sorted(os.listdir(tmp_path)) == ["in.parquet", "temporary"]
