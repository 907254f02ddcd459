"""Every number of `stats` against numpy, rapidfuzz and regex, from scratch, on real pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clair_apo.errors import ClairError
from clair_apo.report import stats
from clair_apo.tables import MEASURES, TableWriter, pair_schema

FILES = ["pairs_revision.parquet", "pairs_stronger_preferred.parquet"]


def approx_summary(values: list[Any]) -> Any:
    known = np.array([v for v in values if v is not None], float)
    q = {f"p{n:02}": np.quantile(known, n / 100) for n in (5, 25, 50, 75, 95)}
    whole = {"mean": known.mean(), "std": known.std(), "min": known.min(), "max": known.max()}
    return pytest.approx({**whole, **q}, rel=1e-9, abs=1e-12)


def check(found: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    """`found` against the oracle over (rejected, chosen)."""
    rows = [oracle.measures(r, c) for r, c in pairs]
    for name in MEASURES:
        assert found[name] == approx_summary([row[name] for row in rows]), name
    near = [r for r in rows if r["levenshtein_ratio"] <= 0.02 and not r["identical"]]
    longer = [r for r in rows if r["chosen_chars"] > r["rejected_chars"]]
    assert found["pairs"] == len(pairs)
    assert found["identical"] == sum(r["identical"] for r in rows)
    assert found["near_identical"] == len(near)
    assert found["chosen_longer_share"] == pytest.approx(len(longer) / len(rows))
    assert len(found["edit_position"]) == 10
    assert sum(found["edit_position"]) == pytest.approx(1)
    for name in MEASURES:
        values = [row[name] for row in rows if row[name] is not None]
        histogram = found["histograms"][name]
        assert histogram["counts"] == list(np.histogram(values, histogram["edges"])[0]), name
        assert sum(histogram["counts"]) == len(values)


@pytest.fixture(scope="session")
def real_report(shared_data: Path) -> dict[str, Any]:
    return stats([shared_data / name for name in FILES])


@pytest.mark.parametrize("which", [0, 1])
def test_real_pairs(shared_data: Path, real_report: dict[str, Any], which: int) -> None:
    found = real_report["files"][which]
    table = pq.read_table(shared_data / FILES[which])
    pairs = zip(table["rejected"].to_pylist(), table["chosen"].to_pylist(), strict=True)
    check(found, list(pairs))
    assert found["file"].endswith(FILES[which])
    assert (found["skipped"], found["flags"], found["methods"]) == (0, {}, {})
    assert found["tokens_in"] is found["tokens_out"] is found["cost_usd"] is None


def test_rated_answers(shared_data: Path) -> None:
    path = shared_data / "answers_rated.parquet"
    pairs = []
    for row in pq.read_table(path).to_pylist():
        scored = [(c["overall_score"], c["response"]) for c in row["completions"]]
        best, worst = max(s for s, _ in scored), min(s for s, _ in scored)
        if best > worst:
            first = dict(reversed(scored))
            pairs.append((first[worst], first[best]))
    found = stats(path)["files"][0]
    check(found, pairs)
    assert found["skipped"] == 200 - len(pairs)


def test_the_paper_finds_revisions_more_contrastive(real_report: dict[str, Any]) -> None:
    revision, stronger = real_report["files"]
    assert revision["jaccard"]["mean"] > stronger["jaccard"]["mean"]
    assert revision["levenshtein"]["mean"] < stronger["levenshtein"]["mean"]


def test_where_edits_are(tmp_path: Path) -> None:
    """Ten words, one of them changed: its tenth has all the edits."""
    words = [f"word{i}" for i in range(10)]
    for tenth in range(10):
        new = [*words]
        new[tenth] = "other"
        table = pa.table({"chosen": [" ".join(new)], "rejected": [" ".join(words)]})
        pq.write_table(table, tmp_path / "p.parquet")
        shares = stats(tmp_path / "p.parquet")["files"][0]["edit_position"]
        assert shares == [float(i == tenth) for i in range(10)]


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_flags_methods_and_cost(tmp_path: Path) -> None:
    rows = []
    for i in range(2500):  # more than one batch
        usage = {"calls": 1, "tokens_in": i, "tokens_out": 2, "cost_usd": 0.25}
        flags = ["a"] * (i % 2) + ["b"] * (i % 5 == 0)
        rows.append(
            {
                "id": str(i),
                "prompt": message("p"),
                "chosen": message("x" * (i % 7)),
                "rejected": message("xx"),
                "method": "clair" if i % 3 else "stronger_preferred",
                "flags": flags,
                "usage": None if i == 7 else usage,
            }
        )
    with TableWriter(tmp_path / "p.parquet", pair_schema()) as writer:
        writer.write(rows)
    found = stats([tmp_path / "p.parquet"])["files"][0]
    check(found, [("xx", "x" * (i % 7)) for i in range(2500)])
    assert found["flags"] == Counter(f for row in rows for f in row["flags"])
    assert found["methods"] == Counter(row["method"] for row in rows)
    assert found["tokens_in"] == sum(range(2500)) - 7
    assert (found["tokens_out"], found["cost_usd"]) == (2 * 2499, 0.25 * 2499)


def test_without_pairs_there_are_nulls_and_no_nan(tmp_path: Path) -> None:
    empty = pa.array([], pa.string())
    pq.write_table(pa.table({"chosen": empty, "rejected": empty}), tmp_path / "e.parquet")
    (tmp_path / "bad.jsonl").write_text('{"chosen": null, "rejected": "x"}\nbroken\n')
    none, bad = stats([tmp_path / "e.parquet", tmp_path / "bad.jsonl"])["files"]
    for found in (none, bad):
        assert found["pairs"] == found["identical"] == found["near_identical"] == 0
        nothing = [*MEASURES, "chosen_longer_share", "edit_position"]
        assert [found[name] for name in nothing] == [None] * len(nothing)
    assert bad["skipped"] == 2
    assert {k: v["first_row"] for k, v in bad["skipped_reasons"].items()} == {
        "null": 0,
        "unreadable": 1,
    }
    json.dumps([none, bad], allow_nan=False)


def test_empty_and_identical_texts(tmp_path: Path) -> None:
    pairs = [("", ""), ("", "new"), ("old", ""), ("same", "same"), ("a" * 100, "a" * 99 + "b")]
    table = pa.table({"rejected": [r for r, _ in pairs], "chosen": [c for _, c in pairs]})
    pq.write_table(table, tmp_path / "p.parquet")
    found = stats(tmp_path / "p.parquet")["files"][0]
    check(found, pairs)
    assert (found["identical"], found["near_identical"]) == (2, 1)
    pq.write_table(table.slice(3, 1), tmp_path / "same.parquet")
    assert stats(tmp_path / "same.parquet")["files"][0]["edit_position"] is None


def test_formats_agree(shared_data: Path, tmp_path: Path, real_report: dict[str, Any]) -> None:
    table = pq.read_table(shared_data / FILES[0])
    lines = [json.dumps(row) + "\n" for row in table.to_pylist()]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table.slice(0, 77), folder / "0.parquet", row_group_size=10)
    pq.write_table(table.slice(77), folder / "1.parquet")
    want = {**real_report["files"][0], "file": ""}
    for found in stats([tmp_path / "p.jsonl", folder, str(folder / "*")])["files"]:
        for name, value in want.items():
            if isinstance(value, dict) and "mean" in value:
                assert found[name] == pytest.approx(value, rel=1e-12), name
            elif name != "file":
                assert found[name] == value, name


def test_a_wrong_file_is_named_before_anything_is_read(shared_data: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    with pytest.raises(ClairError, match=r"no\.parquet: no such file"):
        stats([shared_data / FILES[0], tmp_path / "no.parquet"], lambda *a: heard.append(a))
    assert not heard


def test_memory_stays_flat(shared_data: Path, tmp_path: Path) -> None:
    """Reading ten times as many pairs takes hardly more memory than their kept numbers."""
    pytest.importorskip("resource")
    table = pq.read_table(shared_data / FILES[0]).slice(0, 40)
    peaks = []
    for times in (50, 500):
        with pq.ParquetWriter(tmp_path / "p.parquet", table.schema, use_dictionary=False) as writer:
            for _ in range(times // 10):
                writer.write_table(pa.concat_tables([table] * 10))
        code = (
            "import resource; from clair_apo.report import stats\n"
            f"assert stats({str(tmp_path / 'p.parquet')!r})['files'][0]['pairs'] == {40 * times}\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40, peaks
