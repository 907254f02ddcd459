"""Which pairs `diff` selects, and what it shows of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import oracle
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from clair_apo.errors import ClairError
from clair_apo.report import diff
from clair_apo.shapes import Pair
from clair_apo.terminal import safe

REVISION = "pairs_revision.parquet"


def shown(pairs: list[Pair], width: int = 80, colour: bool = False) -> str:
    stream = io.StringIO()
    system: Any = "truecolor" if colour else None
    diff.show(
        "p.parquet",
        pairs,
        Console(
            file=stream,
            width=width,
            force_terminal=colour,
            color_system=system,
            markup=False,
            highlight=False,
        ),
    )
    return stream.getvalue()


def pair(rejected: str, chosen: str, **columns: Any) -> Pair:
    return Pair(3, rejected, chosen, columns)


@pytest.mark.parametrize(("how", "sign"), [("largest", -1), ("smallest", 1)])
def test_largest_and_smallest(shared_data: Path, how: str, sign: int) -> None:
    rows = pq.read_table(shared_data / REVISION).to_pylist()
    ratios = [oracle.measures(r["rejected"], r["chosen"])["levenshtein_ratio"] for r in rows]
    want = sorted(range(len(rows)), key=lambda i: (sign * ratios[i], i))[:30]
    found = diff.select(shared_data / REVISION, how, 30)
    assert [p.row for p in found] == want
    assert [p.chosen for p in found] == [rows[i]["chosen"] for i in want]
    assert len(diff.select(shared_data / REVISION, how, 1000)) == len(rows)


def test_samples_repeat(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / REVISION
    lines = [json.dumps(row) + "\n" for row in pq.read_table(path).to_pylist()]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    first = [p.row for p in diff.select(path, "sample", 20, seed=5)]
    assert first == [p.row for p in diff.select(tmp_path / "p.jsonl", "sample", 20, seed=5)]
    assert first == sorted(set(first))
    assert first != [p.row for p in diff.select(path, "sample", 20, seed=6)]
    assert [p.row for p in diff.select(path, "sample", 500)] == list(range(200))
    seen = [0] * 200  # each row as likely as the others
    for seed in range(60):
        for p in diff.select(path, "sample", 20, seed=seed):
            seen[p.row] += 1
    assert max(seen) < 20
    assert abs(sum(seen[:100]) - sum(seen[100:])) < 200


def test_row_and_id(shared_data: Path, tmp_path: Path) -> None:
    rows = pq.read_table(shared_data / REVISION).to_pylist()
    (found,) = diff.select(shared_data / REVISION, "row", 199)
    assert (found.row, found.chosen) == (199, rows[199]["chosen"])
    with pytest.raises(ClairError, match="no row 200"):
        diff.select(shared_data / REVISION, "row", 200)
    with pytest.raises(ClairError, match="has no ids; use --row"):
        diff.select(shared_data / REVISION, "id", "x")
    (tmp_path / "p.jsonl").write_text('{"chosen": null, "rejected": "x"}\n')
    with pytest.raises(ClairError, match="holds no pair that can be read"):
        diff.select(tmp_path / "p.jsonl", "sample", 3)


def test_edits_of_the_document_replay(shared_data: Path) -> None:
    pairs = diff.select(shared_data / REVISION, "sample", 100)
    document = json.loads(json.dumps(diff.document(shared_data / REVISION, pairs), allow_nan=False))
    assert (document["schema"], len(document["pairs"])) == (1, 100)
    for entry in document["pairs"]:
        a, b = entry["rejected"], entry["chosen"]
        built, at = "", 0
        for edit in entry["edits"]:
            assert edit["a_start"] == at
            at = edit["a_end"]
            source, side = (a, "a") if edit["op"] == "equal" else (b, "b")
            built += source[edit[f"{side}_start"] : edit[f"{side}_end"]]
        assert (at, built) == (len(a), b)
        want = oracle.measures(a, b)
        assert {name: entry[name] for name in want} == pytest.approx(want)


def test_marks_when_piped() -> None:
    text = shown([pair("The cat sat on a mat.", "The dog sat on the mat.", prompt="Tell!")])
    assert re.search(r"The ?\[- ?cat-\]\{\+ ?dog\+\} sat on ?\[- ?a-\]\{\+ ?the\+\} mat\.", text)
    assert "row 3" in text
    assert "prompt  Tell!" in text
    assert "identical" in shown([pair("same", "same")])


def test_marks_hold_both_texts(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing folded, either text can be read off; white space apart, which may be drawn."""
    monkeypatch.setattr(diff, "CONTEXT", 10**9)

    def bare(text: str) -> str:
        return re.sub(r"[\s↵·→]", "", text)

    checked = 0
    for p in diff.select(shared_data / REVISION, "sample", 200):
        if p.rejected == p.chosen or set("[]{}") & set(p.rejected + p.chosen):
            continue
        body = diff._body(p, colour=False).plain
        for kept, gone, whole in (("[- -]", "{+ +}", p.rejected), ("{+ +}", "[- -]", p.chosen)):
            start, end = (re.escape(mark) for mark in gone.split())
            text = re.sub(f"{start}.*?{end}", "", body, flags=re.S)
            for mark in kept.split():
                text = text.replace(mark, "")
            assert bare(text) == bare(safe(whole))
        checked += 1
    assert checked > 100


def test_colours_on_a_terminal() -> None:
    text = shown([pair("The cat sat", "The dog sat")], colour=True)
    assert re.search(r"\x1b\[9;31m ?cat", text)
    assert re.search(r"\x1b\[4;32m ?dog", text)
    assert "[-" not in text


def test_long_unchanged_runs_fold() -> None:
    same = "word " * 400
    text = shown([pair(f"old {same}old {same}old", f"new {same}new {same}new")])
    folds = re.findall(r"… ([\d,]+) characters unchanged …", text)
    assert len(folds) == 2
    assert all(1700 < int(n.replace(",", "")) < 1950 for n in folds)
    assert len(text) < 1500
    first = shown([pair(same + "old", same + "new")])
    assert first.count("characters unchanged") == 1
    short = "word " * 40
    assert "unchanged" not in shown([pair(f"old {short}old", f"new {short}new")])


def test_changed_white_space_is_drawn() -> None:
    text = shown([pair("a b\nc", "a  b\n\nc")])
    assert "·" in text
    assert "↵\n" in text


def test_rationale_beside_or_below() -> None:
    p = pair(
        "The cat sat " * 5,
        "The dog sat " * 5,
        rationale="dogs are " + "better " * 9,
        id="abc",
        method="clair",
        flags=["short"],
        chosen_model="big",
        rejected_model=None,
    )
    narrow, wide = shown([p], 80), shown([p], 140)
    assert narrow.index("why") > narrow.rindex("sat")
    assert re.search(r"sat.*   .*dogs are better", wide)
    for text in (narrow, wide):
        assert "row 3 · abc · clair" in text
        assert "flags: short" in text
        assert "? → big" in text


def test_text_of_models_is_not_obeyed() -> None:
    evil = "\x1b]52;c;eA==\x07\u202e[red]\r\x9b31m"
    columns = dict.fromkeys(("id", "prompt", "rationale", "method", "chosen_model"), evil)
    p = pair(f"one {evil}", f"two {evil} three", flags=[evil], **columns)
    for width in (80, 140):
        text = shown([p], width)
        assert not {"\x1b", "\x07", "\u202e", "\r", "\x9b"} & set(text)
        assert "[red]" in text
        lines = shown([p], width, colour=True)
        assert not {"\x07", "\u202e", "\r", "\x9b"} & set(lines)
        assert not re.search(r"\x1b(?!\[[\d;]*m)", lines)
