"""Rows of any table as they are: numbers, order, bytes, and what cannot be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo.clean.rows import RowReader, copy_rows
from clair_apo.errors import ClairError, UsageError
from clair_apo.shapes import read_pairs
from clair_apo.tables import pair_schema


def every(first: int, count: int) -> pa.Array:
    return pa.repeat(True, count)


def thirds(first: int, count: int) -> pa.Array:
    return pa.array([(first + i) % 3 == 0 for i in range(count)], pa.bool_())


PARQUET = ["answers_rated", "pairs_revision", "pairs_stronger_preferred", "prompts_llama3_8b"]


@pytest.mark.parametrize("name", PARQUET)
def test_real_tables_keep_schema_order_and_values(shared_data: Path, tmp_path: Path, name: str) -> None:
    source, output = shared_data / f"{name}.parquet", tmp_path / "out.parquet"
    done = copy_rows(source, output, thirds)
    assert (done.rows_in, done.rows_out, done.left_out, done.unreadable) == (200, 67, 133, None)
    whole, kept = pq.read_table(source), pq.read_table(output)
    assert kept.schema.equals(whole.schema, check_metadata=True)
    assert kept.equals(whole.take(list(range(0, 200, 3))))


def test_lines_of_json_pass_byte_for_byte(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "clair_transcripts.jsonl"
    copy_rows(source, tmp_path / "all.jsonl", every)
    assert (tmp_path / "all.jsonl").read_bytes() == source.read_bytes()


def test_numbers_keys_and_unknown_values_of_json_stay(tmp_path: Path) -> None:
    lines = [
        '{"b": 1.0, "a": 12345678901234567890123, "c": 1e-7}',
        '{ "a":NaN,"b" : "\\ud800", "a": 2}',
        '{"z": {}, "é": "\\u00e9"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    copy_rows(tmp_path / "in.jsonl", tmp_path / "out.jsonl", every)
    assert (tmp_path / "out.jsonl").read_text() == "\n".join(lines) + "\n"


def test_parquet_and_lines_and_compression_hold_the_same(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "pairs_revision.parquet"
    for first, second in [("a.jsonl", "b.jsonl.gz"), ("a.jsonl.zst", "b.parquet")]:
        copy_rows(source, tmp_path / first, every)
        copy_rows(tmp_path / first, tmp_path / second, thirds)
        copy_rows(tmp_path / second, tmp_path / "end.parquet", every)
        want = pq.read_table(source).take(list(range(0, 200, 3))).to_pylist()
        assert pq.read_table(tmp_path / "end.parquet").to_pylist() == want


@settings(max_examples=30, deadline=None)
@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=40),
    group=st.integers(1, 9),
    bad=st.sets(st.integers(0, 45), max_size=5),
    kind=st.sampled_from([".parquet", ".jsonl"]),
)
def test_numbers_agree_with_the_pairs_reader(
    kept: list[bool], group: int, bad: set[int], kind: str
) -> None:
    """Bad rows take a number; what stays is what the numbers say."""
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / f"in{kind}", Path(name) / f"out{kind}"
        rows = [{"chosen": f"c{i}", "rejected": f"r{i}"} for i in range(len(kept))]
        if kind == ".jsonl":
            lines = ["broken" if i in bad else json.dumps(row) for i, row in enumerate(rows)]
            source.write_text("".join(line + "\n" for line in lines))
        else:
            cells = [b"\xff" if i in bad else f"c{i}".encode() for i in range(len(kept))]
            chosen = pa.array(cells, pa.binary()).view(pa.string())
            rejected = pa.array([row["rejected"] for row in rows], pa.string())
            pq.write_table(
                pa.table([chosen, rejected], ["chosen", "rejected"]), source, row_group_size=group
            )
        seen: list[int] = []

        def stays(first: int, count: int) -> pa.Array:
            seen.extend(range(first, first + count))
            return pa.array([kept[i] for i in range(first, first + count)], pa.bool_())

        good = [i for i in range(len(kept)) if i not in bad]
        if not good:
            with pytest.raises(ClairError, match=f"none of its {len(kept)} rows can be read"):
                copy_rows(source, output, stays)
            assert not output.exists()
            return
        done = copy_rows(source, output, stays)
        assert seen == good
        pairs = [row for batch in read_pairs(source) for row in batch.row.to_pylist()]
        assert pairs == good
        want = [f"c{i}" for i in good if kept[i]]
        assert (done.rows_in, done.rows_out) == (len(kept), len(want))
        assert (done.unreadable.rows if done.unreadable else 0) == len(kept) - len(good)
        found = [r["chosen"] for b in RowReader(output) for r in b.batch.to_pylist()] if want else []
        assert found == want


def test_a_broken_row_group_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"a": [f"{i}" * 50 for i in range(30)]}), source, row_group_size=10)
    column = pq.read_metadata(source).row_group(1).column(0)
    raw = bytearray(source.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    source.write_bytes(raw)
    done = copy_rows(source, tmp_path / "out.parquet", every)
    assert (done.rows_in, done.rows_out) == (30, 20)
    assert done.unreadable is not None
    assert (done.unreadable.rows, done.unreadable.first_row) == (10, 10)
    assert "row group 1" in done.unreadable.first


def test_one_type_for_each_loose_column(tmp_path: Path) -> None:
    lines = ['{"a": 1, "b": "x", "c": [1]}', "broken", '{"b": 2, "a": 2.5, "d": {"e": null}}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = copy_rows(tmp_path / "in.jsonl", tmp_path / "out.parquet", every)
    assert done.unreadable is not None
    assert done.unreadable.first.startswith("not JSON")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"a": 1.0, "b": "x", "c": [1], "d": None},
        {"a": 2.5, "b": "2", "c": None, "d": {"e": None}},
    ]


def test_csv_is_text(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'a,b\n007,"x, ""y""\nz"\n1,2,3\n\xff,q\n,\n')
    done = copy_rows(tmp_path / "in.csv", tmp_path / "out.jsonl", every)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [{"a": "007", "b": 'x, "y"\nz'}, {"a": "", "b": ""}]
    assert done.unreadable is not None
    assert (done.unreadable.rows, done.rows_in) == (2, 4)


def two(folder: Path, first: pa.Table, second: pa.Table) -> Path:
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    pq.write_table(first, parts / "a.parquet")
    pq.write_table(second, parts / "b.parquet")
    return parts


def test_files_with_the_same_columns_go_together(tmp_path: Path) -> None:
    first = pa.table(
        {"s": pa.array(["a"]), "n": pa.array([None], pa.null()), "i": pa.array([1], pa.int32())}
    )
    second = pa.table({"i": [1 << 40], "s": pa.array(["b"], pa.string_view()), "n": [2.5]})
    copy_rows(two(tmp_path, first, second), tmp_path / "out.parquet", every)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.to_pylist() == [{"s": "a", "n": None, "i": 1}, {"s": "b", "n": 2.5, "i": 1 << 40}]
    assert found.schema.field("s").type == pa.large_string()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"a": ["x"]}, {"a": [1]}, "`a` is of type string in one, int64 in the other"),
        ({"a": ["x"]}, {"b": ["x"]}, "only the first has the column `a`"),
        ({"a": ["x"]}, {"a": ["x"], "b": [1]}, "only the second has the column `b`"),
        ({"a": [1]}, {"a": [1.5]}, "int64 in one, double"),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, first: Any, second: Any, said: str) -> None:
    parts = two(tmp_path, pa.table(first), pa.table(second))
    with pytest.raises(ClairError, match=said) as caught:
        copy_rows(parts, tmp_path / "out.parquet", every)
    assert "a.parquet" in str(caught.value)
    assert "b.parquet" in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_types_without_a_filter_of_their_own(tmp_path: Path) -> None:
    table = pa.table(
        {
            "view": pa.array(["a", None, "c" * 40, "d"], pa.string_view()),
            "kind": pa.array(["x", "y", "x", None]).dictionary_encode(),
            "deep": pa.array([{"a": [1]}, None, {"a": None}, {"a": []}]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    table = pq.read_table(tmp_path / "in.parquet")
    copy_rows(tmp_path / "in.parquet", tmp_path / "out.parquet", thirds)
    found = pq.read_table(tmp_path / "out.parquet")
    # Dictionaries are an encoding of the file: they come back as what they stand for.
    plain = table.set_column(1, "kind", table["kind"].cast(pa.string()))
    assert found.schema.equals(plain.schema, check_metadata=True)
    assert found.to_pylist() == [table.to_pylist()[i] for i in (0, 3)]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.5, float("nan"), float("-inf")]}), tmp_path / "in.parquet")
    copy_rows(tmp_path / "in.parquet", tmp_path / "out.jsonl", every)
    assert (tmp_path / "out.jsonl").read_text() == '{"x": 1.5}\n{"x": null}\n{"x": null}\n'


def test_nanoseconds_do_not_need_pandas(tmp_path: Path) -> None:
    times = pa.array([1767225600123456789, None], pa.timestamp("ns", "UTC"))
    table = pa.table({"t": times, "extra": pa.StructArray.from_arrays([times], ["u"])})
    pq.write_table(table, tmp_path / "in.parquet")
    code = (
        "import sys\n"
        "class None_:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pandas': raise ImportError(name)\n"
        "sys.meta_path.insert(0, None_())\n"
        "import pyarrow as pa; from clair_apo.clean.rows import copy_rows\n"
        "copy_rows(sys.argv[1], sys.argv[2], lambda first, n: pa.nulls(n, pa.bool_()).fill_null(True))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "in.parquet"), str(tmp_path / "out.jsonl")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    time = "2026-01-01T00:00:00.123456789Z"
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [{"t": time, "extra": {"u": time}}, {"t": None, "extra": {"u": None}}]


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"a": [1]}), source)
    before = source.read_bytes()
    os.symlink(source, tmp_path / "link.parquet")
    for spec, output, said in [
        (source, source, "also the input"),
        (source, tmp_path / "link.parquet", "also the input"),
        (tmp_path, tmp_path / "new.parquet", "lies in the folder"),
        (f"{tmp_path}/*.parquet", tmp_path / "new.parquet", "fits the pattern"),
    ]:
        with pytest.raises(UsageError, match=said):
            copy_rows(spec, output, every)
    assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.parquet", "link.parquet"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(10_000))}), tmp_path / "in.parquet")

    def fails(first: int, count: int) -> pa.Array:
        if first:
            raise RuntimeError("stop")
        return every(first, count)

    for name in ["out.parquet", "out.jsonl", "out.jsonl.gz"]:
        with pytest.raises(RuntimeError):
            copy_rows(tmp_path / "in.parquet", tmp_path / name, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_progress_and_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(10_000))}), tmp_path / "in.parquet")
    heard: list[tuple[str, int, int | None]] = []
    copy_rows(tmp_path / "in.parquet", tmp_path / "out.parquet", every, lambda *told: heard.append(told))
    assert heard[-1] == (str(tmp_path / "in.parquet"), 10_000, 10_000)
    assert pc.sum(pq.read_table(tmp_path / "out.parquet")["a"]).as_py() == sum(range(10_000))
    written = pq.read_metadata(tmp_path / "out.parquet")
    assert max(written.row_group(i).total_byte_size for i in range(written.num_row_groups)) <= 64 << 20


def test_pair_tables_of_earlier_versions_are_read_with_new_ones(shared_data: Path, tmp_path: Path) -> None:
    """What they lack is null, whichever comes first; tables of another kind are still refused."""
    schema = pair_schema(pa.struct([("source", pa.string())]))
    row = {
        "prompt": [{"role": "user", "content": "a?"}],
        "chosen": [{"role": "assistant", "content": "b."}],
        "rejected": [{"role": "assistant", "content": "c."}],
        "flags": [],
        "judge_winner": "chosen",
        "extra": {"source": "s"},
    }
    new = pa.Table.from_pylist([{**row, "id": "new", "method": "on_policy_judge"}], schema=schema)
    old = pa.Table.from_pylist([{**row, "id": "old", "method": "clair"}], schema=schema)
    old = old.drop_columns(
        ["chosen_rating", "rejected_rating", "judge_winner", "judge_verdicts", "rounds", "extra"]
    )
    for first, second in ((old, new), (new, old)):
        pq.write_table(first, tmp_path / "a.parquet")
        pq.write_table(second, tmp_path / "b.parquet")
        copy_rows(
            str(tmp_path / "[ab].parquet"), tmp_path / "all.pq.parquet", lambda _, n: pa.repeat(True, n)
        )
        found = {r["id"]: r for r in pq.read_table(tmp_path / "all.pq.parquet").to_pylist()}
        assert {i: (r["method"], r["judge_winner"], r["extra"]) for i, r in found.items()} == {
            "old": ("clair", None, None),
            "new": ("on_policy_judge", "chosen", {"source": "s"}),
        }
        reader = RowReader(tmp_path / "[ab].parquet")
        reader.narrow(["judge_winner"])
        winners = [rows.batch.column("judge_winner").to_pylist() for rows in reader]
        assert sorted(winners, key=str) == [["chosen"], [None]]
    pq.write_table(new.drop_columns(["template"]), tmp_path / "b.parquet")
    with pytest.raises(ClairError, match="only the first has the column `template`"):
        RowReader(tmp_path / "[ab].parquet")
