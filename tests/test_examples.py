"""The scripts of `examples/`, run as a reader runs them: on their own pairs and on files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clair_apo.text as text
from cli import environment

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


def run(home: Path, example: str, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / example), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(HF_HOME=str(home / "huggingface"), HF_HUB_OFFLINE="1"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_for_each_producer() -> None:
    producers = {"datasets", "duckdb", "pandas", "polars", "pyarrow"}
    assert {name.removesuffix("_pairs.py") for name in EXAMPLES} == producers


@pytest.mark.parametrize("example", EXAMPLES)
def test_on_its_own_pairs(example: str, tmp_path: Path) -> None:
    lines = run(tmp_path, example).splitlines()
    assert lines[0] == "2 of 3 pairs change at most half of their words"
    assert "0.778" in "".join(lines) or "0.7777" in "".join(lines)
    assert lines[-1] == "replace '5' -> '4'"


PAIRS = {
    "rejected": ["one two three four", "a\x1b[31m b c d", "same text", "漢字 is a word here", None, ""],
    "chosen": ["one two 3 four", "a b c d", "same text", "漢子 is a word here", "x", "y"],
}


@pytest.mark.parametrize("shape", ["text", "messages"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_on_a_file(example: str, shape: str, tmp_path: Path) -> None:
    """Plain text with a null, or messages as build-pairs writes them; hostile text is made harmless."""
    table = pa.table(PAIRS)
    if shape == "messages":
        table = table.slice(0, 4)
        message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        table = pa.table(
            {
                side: pa.array([[("assistant", text)] for text in table[side].to_pylist()], message)
                for side in ("rejected", "chosen")
            }
        )
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=4)
    out = run(tmp_path, example, tmp_path / "pairs.parquet")
    lines = out.splitlines()
    assert lines[0] == f"3 of {len(table)} pairs change at most half of their words"
    assert lines[-1] == "replace '字' -> '子'"
    assert "\x1b" not in out


@pytest.mark.parametrize("example", EXAMPLES)
def test_on_real_pairs(example: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "pairs_revision.parquet"
    table = pq.read_table(source)
    score = text.score(table["rejected"], table["chosen"])
    ratios, same = score["word_edit_ratio"].to_pylist(), score["identical"].to_pylist()
    near = sum(ratio <= 0.5 and not identical for ratio, identical in zip(ratios, same, strict=True))
    assert 10 < near < 100
    assert (
        run(tmp_path, example, source).splitlines()[0]
        == f"{near} of 200 pairs change at most half of their words"
    )
