"""Preference pairs of every shape: the same pairs from any file, and every row accounted for."""

from __future__ import annotations

import csv
import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clair_apo.errors import ClairError
from clair_apo.shapes import PairReader, pair_at, pair_with_id, read_pairs
from clair_apo.tables import TableWriter, pair_schema

Texts = list[tuple[int, str, str]]


def read(spec: Any, **kwargs: Any) -> tuple[Texts, PairReader]:
    reader = read_pairs(spec, **kwargs)
    found: Texts = []
    for batch in reader:
        rows, rejected = batch.row.to_pylist(), batch.rejected.to_pylist()
        found += zip(rows, rejected, batch.chosen.to_pylist(), strict=True)
    assert reader.rows_read == len(found) + sum(s.rows for s in reader.skipped.values())
    return found, reader


def reasons(reader: PairReader) -> dict[str, tuple[int, int]]:
    return {name: (s.rows, s.first_row) for name, s in reader.skipped.items()}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


@pytest.fixture(scope="session")
def real(shared_data: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(shared_data / "pairs_revision.parquet").to_pylist()
    return rows


# Each shape from (prompt, chosen, rejected).
def plain(p: str, c: str, r: str) -> dict[str, Any]:
    return {"prompt": p, "chosen": c, "rejected": r}


def explicit(p: str, c: str, r: str) -> dict[str, Any]:
    return {
        "prompt": [said("user", p)],
        "chosen": [said("assistant", c)],
        "rejected": [said("assistant", r)],
    }


def repeated(p: str, c: str, r: str) -> dict[str, Any]:
    both = [said("system", "be kind"), said("user", "hello"), said("assistant", "hi")]
    both.append(said("user", p))
    return {"chosen": [*both, said("assistant", c)], "rejected": [*both, said("assistant", r)]}


def clair_32k(p: str, c: str, r: str) -> dict[str, Any]:
    return {
        "prompt": p,
        "rational": "because",
        "chosen": [said("user", p), said("assistant", c)],
        "rejected": [said("user", p), said("assistant", r)],
    }


def ultrafeedback(p: str, c: str, r: str) -> dict[str, Any]:
    scores = {"middle": 3.5, r: 1.0, c: 9.0} if c != r else {}
    answers = [
        {"model": f"m{s:g}", "response": t, "overall_score": s, "annotations": {"why": "x" * 50}}
        for t, s in scores.items()
    ]
    return {"instruction": p, "completions": answers}


def argilla(p: str, c: str, r: str) -> dict[str, Any]:
    return {**repeated(p, c, r), "prompt": p, "chosen-rating": 5.0, "rejected-model": "small"}


def openai(p: str, c: str, r: str) -> dict[str, Any]:
    return {
        "input": {"messages": [said("user", p)]},
        "preferred_output": [said("assistant", c)],
        "non_preferred_output": [said("assistant", r)],
    }


def parts(p: str, c: str, r: str) -> dict[str, Any]:
    def split(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]

    return {
        "prompt": p,
        "chosen": [said("assistant", split(c))],
        "rejected": [said("assistant", split(r))],
    }


def transcript(p: str, c: str, r: str) -> dict[str, Any]:
    head = f"\n\nHuman: hello\n\nAssistant: hi\n\nHuman: {p}\n\nAssistant: "
    return {"chosen": head + c, "rejected": head + r}


SHAPES = [plain, explicit, repeated, clair_32k, ultrafeedback, argilla, openai, parts, transcript]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_same_pairs_from_every_shape(
    real: list[dict[str, str]], tmp_path: Path, shape: Callable[..., Any], kind: str
) -> None:
    rows = [shape(r["prompt"], r["chosen"], r["rejected"]) for r in real]
    path = tmp_path / f"pairs{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    else:
        jsonl(path, rows)
    expected = [(i, r["rejected"], r["chosen"]) for i, r in enumerate(real)]
    if shape is ultrafeedback:  # identical answers cannot have been rated apart
        expected = [e for e in expected if e[1] != e[2]]
    found, reader = read(path, columns=["prompt"])
    assert found == expected
    prompt = pair_at(path, 1, ["prompt"]).columns["prompt"]
    assert prompt.endswith(real[1]["prompt"])
    if shape is repeated:
        assert prompt.startswith("system: be kind\n\nuser: hello\n\nassistant: hi\n\nuser: ")
    elif shape is not transcript:
        assert prompt == real[1]["prompt"]
    assert set(reader.skipped) <= {"empty_list"}


def test_real_files(shared_data: Path) -> None:
    found, reader = read(shared_data / "answers_rated.parquet", columns=["chosen_model"])
    rows = pq.read_table(shared_data / "answers_rated.parquet").to_pylist()
    scores = [[c["overall_score"] for c in r["completions"]] for r in rows]
    clear = [i for i, s in enumerate(scores) if max(s) > min(s)]
    assert [f[0] for f in found] == clear
    for row, rejected, chosen in found:
        of = {c["response"]: c["overall_score"] for c in reversed(rows[row]["completions"])}
        assert of[chosen] == max(scores[row])
        assert of[rejected] == min(scores[row])
    assert reader.total_rows == len(rows)
    with pytest.raises(ClairError, match=r"prompts_llama3_8b.parquet.*prompt, response.*`chosen`"):
        read_pairs(shared_data / "prompts_llama3_8b.parquet")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), "dictionary"]
)
def test_every_arrow_text_type(tmp_path: Path, kind: Any) -> None:
    texts = pa.array(["a", "βγ", "", None, "😀"])
    as_kind = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    table = pa.table({"prompt": texts, "chosen": as_kind, "rejected": as_kind})
    pq.write_table(table, tmp_path / "p.parquet")
    found, reader = read(tmp_path / "p.parquet", columns=["prompt"])
    assert found == [(i, t, t) for i, t in enumerate(texts.to_pylist()) if t is not None]
    assert reasons(reader) == {"null": (1, 3)}


BAD: list[tuple[Any, str]] = [
    (None, "null"),
    ([], "empty_list"),
    ([said("user", "q")], "no_assistant_message"),
    ([said("assistant", None)], "no_text"),
    ([said("assistant", [{"type": "image"}])], "no_text"),
    (12, "wrong_type"),
    (["text"], "wrong_type"),
    ("half \ud800", "not_unicode"),
]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_bad_rows_are_counted_by_reason(tmp_path: Path, side: str) -> None:
    rows = [{**plain("p", "c", "r"), side: value} for value, _ in BAD for _ in range(2)]
    heard: list[int] = []
    path = jsonl(tmp_path / "p.jsonl", [plain("p", "c", "r"), *rows, {"prompt": "x"}])
    with path.open("a") as file:
        file.write('{"chosen": \n[1]\n')
    found, reader = read(path, on_skip=lambda row, reason, detail: heard.append(row))
    expected: dict[str, tuple[int, int]] = {}
    for i, (_, reason) in enumerate(BAD):
        count, first = expected.get(reason, (0, 1 + 2 * i))
        expected[reason] = (count + 2, first)
    expected |= {"missing_column": (1, 17), "unreadable": (2, 18)}
    assert found == [(0, "r", "c")]
    assert reasons(reader) == expected
    assert heard == list(range(1, 20))
    assert f"`{side}`" in reader.skipped["null"].first


def test_bad_rows_in_parquet(tmp_path: Path) -> None:
    good = [said("user", "q"), said("assistant", "yes")]
    values = [
        good,
        None,
        [],
        [said("user", "q")],
        [said("assistant", None)],
        [*good, said("tool", "later")],
        good,
    ]
    table = pa.Table.from_pylist([{"chosen": v, "rejected": good} for v in values])
    pq.write_table(table, tmp_path / "p.parquet")
    found, reader = read(tmp_path / "p.parquet")
    assert found == [(0, "yes", "yes"), (5, "yes", "yes"), (6, "yes", "yes")]
    assert reasons(reader) == {
        "null": (1, 1),
        "empty_list": (1, 2),
        "no_assistant_message": (1, 3),
        "no_text": (1, 4),
    }


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, bad.buffers())
    table = pa.table({"chosen": text, "rejected": pa.array(["x", "y", "z"]), "id": text})
    pq.write_table(table, tmp_path / "p.parquet")
    found, reader = read(tmp_path / "p.parquet", columns=["id"])
    assert found == [(0, "x", "ok"), (2, "z", "fine")]
    assert reasons(reader) == {"not_unicode": (1, 1)}


def test_csv_with_text_and_with_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": 'a, "b"\nc', "rejected": ""},
        {"prompt": "p", "chosen": json.dumps(explicit("p", "x", "y")["chosen"]), "rejected": "y"},
        {"prompt": "p", "chosen": "[1, 2]", "rejected": '{"role": 1}, or so'},
    ]
    path = tmp_path / "p.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows)
        file.write("one,two\n")
    found, reader = read(path)
    assert found == [(0, "", 'a, "b"\nc'), (1, "y", "x"), (2, '{"role": 1}, or so', "[1, 2]")]
    assert reasons(reader) == {"unreadable": (1, 3)}


def test_scores_as_text_ties_and_lone_answers(tmp_path: Path) -> None:
    def answers(*scores: Any) -> dict[str, Any]:
        return {"completions": [{"response": f"{i}", "rating": s} for i, s in enumerate(scores)]}

    rows = [answers("3", "N/A", "5.5", "5.5"), answers(2, 2), answers(1), answers(None, "x", 4)]
    found, reader = read(jsonl(tmp_path / "p.jsonl", rows))
    assert found == [(0, "0", "2")]
    assert reasons(reader) == {"tie": (1, 1), "too_few_answers": (2, 2)}


def test_optional_columns(tmp_path: Path) -> None:
    row = {
        **explicit("q", "c", "r"),
        "id": "i",
        "rationale": "why",
        "method": "clair",
        "chosen_model": "big",
        "flags": ["short", "odd"],
        "usage": {"calls": 2, "tokens_in": 7, "tokens_out": 9, "cost_usd": 0.5},
    }
    bare = {**explicit("q", "c", "r"), "id": "j", "method": "clair", "flags": []}
    names = [
        "id",
        "prompt",
        "rationale",
        "method",
        "flags",
        "usage",
        "chosen_model",
        "rejected_model",
    ]
    with TableWriter(tmp_path / "p.parquet", pair_schema()) as writer:
        writer.write([row, bare])
    jsonl(tmp_path / "p.jsonl", [row, bare])
    expected = {
        "id": "i",
        "prompt": "q",
        "rationale": "why",
        "method": "clair",
        "flags": ["short", "odd"],
        "usage": row["usage"],
        "chosen_model": "big",
        "rejected_model": None,
    }
    for name in ("p.parquet", "p.jsonl"):
        assert pair_at(tmp_path / name, 0, names).columns == expected
        second = pair_with_id(tmp_path / name, "j", names)
        assert (second.row, second.columns["usage"], second.columns["flags"]) == (1, None, [])
    odd = {
        **plain("p", "c", "r"),
        "id": 12,
        "flags": "none",
        "method": ["x"],
        "usage": {"tokens_in": 10**30, "cost_usd": float("nan")},
    }
    columns = pair_at(jsonl(tmp_path / "odd.jsonl", [odd]), 0, names).columns
    assert columns["id"] == "12"
    assert columns["flags"] is None
    assert columns["method"] is None
    assert set(columns["usage"].values()) == {None}
    with pytest.raises(ValueError, match="no such optional column: colour"):
        read_pairs(tmp_path / "p.parquet", ["colour"])


def test_a_folder_is_one_stream_of_rows(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", [plain("p", "c2", "r2"), {"prompt": 1}])
    pq.write_table(pa.Table.from_pylist([plain("p", "c1", "r1")]), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps(repeated("p", "c3", "r3")))
    found, reader = read(tmp_path)
    assert found == [(0, "r1", "c1"), (1, "r2", "c2"), (3, "r3", "c3")]
    assert reader.skipped["missing_column"].first.startswith("b.jsonl: ")
    assert reader.total_rows is None
    assert read(str(tmp_path / "*.parquet"))[0] == found[:1]
    assert list(read_pairs(tmp_path)) != []  # a second reading starts anew
    assert pair_at(tmp_path, 3).chosen == "c3"


def test_files_without_pairs(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"text\x1b[31m": "x"}] * 3)
    with pytest.raises(ClairError, match="holds no preference pairs") as error:
        read(path)
    assert "\x1b" not in str(error.value)
    jsonl(path, [{"chosen": "x"}] * 5000)
    with pytest.raises(ClairError, match="Its columns are: chosen"):
        read(path)
    path.write_text(" \n\n")
    with pytest.raises(ClairError, match="there is nothing in it"):
        read(path)
    pq.write_table(
        pa.table({"chosen": pa.array([], pa.string()), "rejected": pa.array([], pa.string())}),
        tmp_path / "e.parquet",
    )
    assert read(tmp_path / "e.parquet")[0] == []
    pq.write_table(pa.table({"chosen": [1, 2], "rejected": [3, 4]}), tmp_path / "n.parquet")
    assert reasons(read(tmp_path / "n.parquet")[1]) == {"wrong_type": (2, 0)}
    with pytest.raises(ClairError, match="no such file"):
        read_pairs(tmp_path / "none.parquet")


def test_single_pairs_that_are_not_there(tmp_path: Path) -> None:
    rows = [{**plain("p", "c", "r"), "id": "one"}, plain("p", "c", "r") | {"chosen": None}]
    path = jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(ClairError, match="row 1 holds no pair: one side is null"):
        pair_at(path, 1)
    with pytest.raises(ClairError, match=r"no row 2; the file has 2 rows, numbered 0 to 1"):
        pair_at(path, 2)
    with pytest.raises(ClairError, match="no pair has the id two; ids look like one"):
        pair_with_id(path, "two")


def test_parquet_streams_and_reads_only_what_it_needs(tmp_path: Path) -> None:
    """A long table of messages goes through Arrow: far faster than row by row, and in batches."""
    rng = random.Random(3)
    rows = [
        {**explicit("p", rng.randbytes(300).hex(), rng.randbytes(300).hex()), "extra": "x" * 99}
        for _ in range(2000)
    ]
    table = pa.concat_tables([pa.Table.from_pylist(rows)] * 10)
    pq.write_table(table, tmp_path / "p.parquet")
    start = time.perf_counter()
    sizes = [len(batch) for batch in read_pairs(tmp_path / "p.parquet")]
    fast = time.perf_counter() - start
    assert sum(sizes) == 20_000
    assert max(sizes) <= 1024
    assert fast < 2  # 0.1 s here; row by row takes longer than this
    wide = pa.table({"chosen": ["c" * 2_000_000] * 20, "rejected": ["r"] * 20})
    pq.write_table(wide, tmp_path / "w.parquet", use_dictionary=False)
    assert max(len(batch) for batch in read_pairs(tmp_path / "w.parquet")) <= 8


def test_one_odd_value_costs_no_other_row(tmp_path: Path) -> None:
    from clair_apo.report import stats

    plain = {"prompt": "p", "chosen": "a b", "rejected": "a c"}
    huge = 10**400
    odd: list[dict[str, Any]] = [
        {**plain, "flags": ["\ud800"]},
        {**plain, "usage": {"tokens_in": huge, "cost_usd": 1e308}},
        {**plain, "usage": {"tokens_in": 2**62, "cost_usd": 1e308}},
        {**plain, "usage": {"tokens_in": 5, "cost_usd": 0.5}},
    ]
    report = stats([jsonl(tmp_path / "a.jsonl", odd)])["files"][0]
    assert (report["pairs"], report["skipped"]) == (4, 0)
    assert (report["tokens_in"], report["cost_usd"]) == (5, 0.5)
    rated = [{"model": "m", "response": r, "rating": s} for r, s in (("x", huge), ("y", 1), ("z", 2))]
    found, _ = read(jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "completions": rated}]))
    assert found == [(0, "y", "z")]
    (tmp_path / "c.csv").write_text('prompt,chosen,rejected\np,"[]","[1]"\n')
    assert read(tmp_path / "c.csv")[0] == [(0, "[1]", "[]")]
    column = pa.array(["a"])
    pq.write_table(
        pa.Table.from_arrays([column] * 3, names=["chosen", "rejected", "chosen"]), tmp_path / "d.parquet"
    )
    with pytest.raises(ClairError, match="more than once"):
        read(tmp_path / "d.parquet")


def test_a_file_whose_name_is_no_utf8(tmp_path: Path) -> None:
    for name, write in (("\udcff.jsonl", None), ("\udcfe.parquet", "parquet")):
        path = tmp_path / name
        row = {"prompt": "p", "chosen": "a", "rejected": "b"}
        if write is None:
            jsonl(path, [row])
        else:
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "plain.parquet")
            (tmp_path / "plain.parquet").rename(path)
        assert read(path)[0] == [(0, "b", "a")]


def test_a_gz_that_breaks_off_gives_every_whole_row(tmp_path: Path) -> None:
    import zlib

    lines = "".join(
        json.dumps({"prompt": str(n), "chosen": f"{n * 7919}", "rejected": "b"}) + "\n" for n in range(3000)
    )
    data = gzip.compress(lines.encode())[:-2000]
    (tmp_path / "cut.jsonl.gz").write_bytes(data)
    whole = zlib.decompressobj(31).decompress(data).count(b"\n")
    found, reader = read(tmp_path / "cut.jsonl.gz")
    assert whole - 400 < len(found) <= whole
    assert reader.skipped
