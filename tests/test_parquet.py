"""Parquet files of every producer and every kind of damage: all good rows, no more memory than promised."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo import files
from clair_apo._core import ParquetFile, ParquetWriter
from clair_apo.errors import ClairError
from clair_apo.files import BadRow
from clair_apo.tables import TableWriter

MIB = 1 << 20


def read(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
    """The good rows of a file as one table, and the bad ones."""
    good, bad = [], []
    for item in files.read_batches(path, columns):
        if isinstance(item, BadRow):
            bad.append(item)
        else:
            item.validate(full=True)
            good.append(item)
    schema = good[0].schema if good else files.columns_of(path)
    return pa.Table.from_batches(good, schema), bad


def many_types(rows: int = 300) -> pa.Table:
    rng = random.Random(1)

    def some(value: Any) -> Any:
        return None if rng.random() < 0.2 else value

    def message(i: int) -> dict[str, Any]:
        return {"role": some("user"), "content": some(f"text {i} é 漢"), "n": some(i)}

    columns: dict[str, pa.Array] = {
        "text": pa.array([some(f"row {i}") for i in range(rows)]),
        "large": pa.array([some("x" * (i % 70)) for i in range(rows)], pa.large_string()),
        "view": pa.array([some("y" * (i % 70)) for i in range(rows)], pa.string_view()),
        "bytes": pa.array([some(b"\xff\x00" * (i % 5)) for i in range(rows)], pa.binary()),
        "uuid": pa.array([some(bytes([i % 256] * 16)) for i in range(rows)], pa.binary(16)),
        "int": pa.array([some(i) for i in range(rows)], pa.int16()),
        "float": pa.array([some(i / 3) for i in range(rows)], pa.float32()),
        "yes": pa.array([some(i % 2 == 0) for i in range(rows)]),
        "price": pa.array([some(decimal.Decimal(i) / 4) for i in range(rows)], pa.decimal128(20, 2)),
        "day": pa.array([some(datetime.date(2026, 1, 1)) for _ in range(rows)]),
        "at": pa.array(
            [some(datetime.datetime(2026, 1, 1, 0, i % 60)) for i in range(rows)],
            pa.timestamp("us", "Europe/Berlin"),
        ),
        "names": pa.array([some([some("a")] * (i % 4)) for i in range(rows)]),
        "messages": pa.array([some([message(i)] * (i % 3)) for i in range(rows)]),
        "deep": pa.array([some([[some(f"{i}")]] * (i % 2)) for i in range(rows)]),
        "large_list": pa.array([some([i, None]) for i in range(rows)], pa.large_list(pa.int64())),
        "pair": pa.array([some([1.0, 2.0]) for _ in range(rows)], pa.list_(pa.float32(), 2)),
        "struct": pa.array([some({"a": some(f"{i}"), "b": {"c": some(i)}}) for i in range(rows)]),
        "map": pa.array(
            [some([(f"k{i}", some("v"))]) for i in range(rows)], pa.map_(pa.string(), pa.string())
        ),
    }
    return pa.table(columns).replace_schema_metadata({"huggingface": '{"info": 1}', "other": "é"})


OPTIONS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd", "row_group_size": 7},
    {"compression": "gzip", "data_page_version": "2.0", "use_dictionary": False},
    {"compression": "none", "data_page_size": 64},
    {"compression": "brotli", "store_schema": False},
    {"compression": "lz4", "use_dictionary": ["text"]},
    {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "use_dictionary": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_pyarrow_reads(tmp_path: Path, options: dict[str, Any]) -> None:
    pq.write_table(many_types(), tmp_path / "t.parquet", **options)
    want = pq.read_table(tmp_path / "t.parquet")
    found, bad = read(tmp_path / "t.parquet")
    assert (found.num_rows, bad) == (want.num_rows, [])
    for name in want.schema.names:
        assert found[name].cast(want[name].type).to_pylist() == want[name].to_pylist(), name
    if options.get("store_schema", True):
        assert found.schema.equals(want.schema)
    assert found.schema.metadata == want.schema.metadata


def test_columns_and_parts_of_them(tmp_path: Path) -> None:
    table = many_types()
    pq.write_table(table, tmp_path / "t.parquet")
    found, _ = read(tmp_path / "t.parquet", ["int", "struct.b", "messages.list.element.role"])
    assert found.schema.names == ["int", "messages", "struct"]
    assert found["struct"].to_pylist() == [
        None if row is None else {"b": row["b"]} for row in table["struct"].to_pylist()
    ]
    assert files.count_rows(tmp_path / "t.parquet") == 300
    assert files.names_of(tmp_path / "t.parquet") == table.schema.names


def test_dictionaries_are_read_as_what_they_hold(tmp_path: Path) -> None:
    column = pa.array(["a", None, "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"c": column}), tmp_path / "t.parquet")
    found, _ = read(tmp_path / "t.parquet")
    assert found["c"].to_pylist() == ["a", None, "b", "a"]
    assert files.columns_of(tmp_path / "t.parquet") == found.schema


def test_polars_and_datasets(tmp_path: Path) -> None:
    import datasets
    import polars as pl

    rows = [{"chosen": f"c{i}", "tags": ["a"] * (i % 3), "n": i} for i in range(100)]
    pl.DataFrame(rows).write_parquet(tmp_path / "polars.parquet", row_group_size=30)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "datasets.parquet")
    for name in ("polars", "datasets"):
        found, bad = read(tmp_path / f"{name}.parquet")
        assert (found.to_pylist(), bad) == (rows, []), name


# Pages that are split: as DuckDB makes them, whose pages have a hundred megabytes.

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["snappy", "zstd", "gzip", "none", "lz4"]),
    st.sampled_from(["1.0", "2.0"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_large_pages_hold_what_small_ones_do(
    tmp_path_factory: pytest.TempPathFactory, codec: str, version: str, nested: bool, seed: int
) -> None:
    rng = random.Random(seed)
    texts = [None if rng.random() < 0.1 else f"{i} " + "wört " * rng.randrange(400) for i in range(6000)]
    if nested:
        cells: list[Any] = [
            None
            if rng.random() < 0.1
            else [{"role": "user", "content": t} for t in texts[i : i + rng.randrange(4)]]
            for i in range(len(texts))
        ]
    else:
        cells = texts
    table = pa.table({"c": pa.array(cells), "n": pa.array([float(i) for i in range(6000)])})
    path = tmp_path_factory.mktemp("pages") / "t.parquet"
    pq.write_table(
        table,
        path,
        compression=codec,
        data_page_version=version,
        use_dictionary=False,
        data_page_size=1 << 30,
        write_batch_size=1 << 20,
    )
    found, bad = read(path)
    assert bad == []
    assert found.equals(table)


# What is wrong with a file.


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(many_types(), path)
    whole = path.read_bytes()
    for name, content in {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no table" * 20}.items():
        bad = tmp_path / f"{name}.parquet"
        bad.write_bytes(content)
        with pytest.raises(ClairError, match=rf"{name}\.parquet: not a readable Parquet file: \w"):
            files.count_rows(bad)
    with pytest.raises(ClairError, match="no such file"):
        files.count_rows(tmp_path / "none.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ClairError, match="is a directory"):
        files.count_rows(tmp_path / "folder.parquet")


def damaged(path: Path, group: int, column: int) -> None:
    """Overwrites the pages of one column in one row group."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("rb+") as file:
        file.seek(start)
        file.write(b"\xa5" * chunk.total_compressed_size)


def test_a_bad_row_group_among_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"a": [f"a{i}" for i in range(90)], "b": [f"b{i}" for i in range(90)]})
    pq.write_table(table, path, row_group_size=30)
    damaged(path, 1, 1)
    found, bad = read(path)
    assert found.equals(pa.concat_tables([table.slice(0, 30), table.slice(60)]))
    assert len(bad) == 30
    assert bad[0].reason.startswith("column `b` of row group 1 of t.parquet cannot be read: ")
    found, bad = read(path, ["a"])
    assert (found.num_rows, bad) == (90, [])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_bad_rows_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "t.parquet"
    pq.write_table(many_types(60), path, row_group_size=20, compression="none")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(4, len(content) - 9))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ClairError):
        rows = 0
        for item in files.read_batches(path):
            rows += 1 if isinstance(item, BadRow) else item.num_rows
        assert rows == files.count_rows(path)


def broken_text(texts: list[bytes]) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def test_a_text_that_is_no_utf8_costs_its_own_row(tmp_path: Path) -> None:
    texts = [b"good %d" % i for i in range(1000)]
    texts[3] = texts[700] = b"caf\xe9"
    column = broken_text(texts)
    struct = pa.StructArray.from_arrays([column], ["inner"])
    nested = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), struct)
    for name, array in {"flat": column, "struct": struct, "nested": nested}.items():
        pq.write_table(pa.table({"n": range(1000), "c": array}), tmp_path / f"{name}.parquet")
        found, bad = read(tmp_path / f"{name}.parquet")
        assert found["n"].to_pylist() == [i for i in range(1000) if i not in (3, 700)]
        assert len(bad) == 2
        assert "text that is not UTF-8 (byte 3 of a cell of `c" in bad[0].reason
        assert (bad[0].column or "").startswith("c")
    found, bad = read(tmp_path / "flat.parquet", ["n"])
    assert (found.num_rows, bad) == (1000, [])


# Memory.


def peak(code: str) -> float:
    """MiB that a process had in memory at most, beyond one that has imported the package."""
    measured = []
    for body in ("import clair_apo", code):
        last = "print([x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')][0])"
        script = f"{body}\n{last}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        measured.append(int(done.stdout.split()[-1]) / 1024)
    return measured[1] - measured[0]


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("how", ["dictionary", "plain", "messages"])
def test_a_cell_of_200_mib_is_one_bad_row(tmp_path: Path, how: str) -> None:
    path = tmp_path / "t.parquet"
    texts = ["first", "x" * (200 * MIB), "last"]
    column = (
        pa.array([[{"role": "assistant", "content": t}] for t in texts])
        if how == "messages"
        else pa.array(texts)
    )
    table = pa.table({"chosen": column, "rejected": ["a", "b", "c"]})
    pq.write_table(table, path, use_dictionary=how == "dictionary")
    taken = peak(
        "from clair_apo.report import stats\n"
        f"found = stats({str(path)!r})['files'][0]\n"
        "assert found['pairs'] == 2, found\n"
        "assert '200 MiB' in found['skipped_reasons']['unreadable']['first'], found"
    )
    assert taken < 128, taken
    found, bad = read(path, ["chosen"])
    assert (found.num_rows, len(bad)) == (2, 1)
    assert "of `chosen" in bad[0].reason
    assert "has 200 MiB; at most 64 are read" in bad[0].reason


@needs_proc
@pytest.mark.parametrize("page", [1 << 20, 1 << 30], ids=["ordinary", "pages as large as the chunk"])
def test_one_huge_row_group_takes_little_memory(tmp_path: Path, page: int) -> None:
    path = tmp_path / "t.parquet"
    rng = random.Random(0)
    words = [f"{rng.random():.6f}" for _ in range(100_000)]
    texts = [" ".join(words[i * 5 : i * 5 + 250]) for i in range(19_900)] * 3
    table = pa.table({"chosen": texts, "rejected": [f"{text}." for text in texts]})
    assert table.nbytes > 250 * MIB
    pq.write_table(
        table,
        path,
        data_page_size=page,
        write_batch_size=page,
        use_dictionary=False,
        row_group_size=len(texts),
    )
    del table
    name = str(path)
    decoded = f"assert sum(b.num_rows for b in ParquetFile({name!r}).batches()) == 59700"
    assert peak(f"from clair_apo._core import ParquetFile\n{decoded}") < 64
    summed = f"assert stats({name!r})['files'][0]['pairs'] == 59700"
    assert peak(f"from clair_apo.report import stats\n{summed}") < 64
    pairs = f"assert sum(len(b) for b in read_pairs({name!r})) == 59700"
    assert peak(f"from clair_apo.shapes import read_pairs\n{pairs}") < 128


# Writing.


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    table = many_types()
    field = table.schema.field("text").with_metadata({"kept": "yes"})
    table = table.cast(table.schema.set(0, field))
    writer = ParquetWriter(tmp_path / "t.parquet", table.schema)
    for batch in table.to_batches(max_chunksize=17):
        writer.write(batch.slice(3))
    writer.finish()
    want = pa.Table.from_batches([batch.slice(3) for batch in table.to_batches(max_chunksize=17)])
    found = pq.read_table(tmp_path / "t.parquet")
    found.validate(full=True)
    assert found.equals(want)
    assert found.schema.equals(table.schema)
    assert found.schema.metadata == table.schema.metadata
    assert found.schema.field("text").metadata == {b"kept": b"yes"}
    chunk = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(0)
    assert (chunk.compression, chunk.has_column_index, chunk.has_offset_index) == ("ZSTD", True, True)
    with pytest.raises(RuntimeError, match="finished"):
        writer.finish()


def test_row_groups_are_bounded_in_bytes(tmp_path: Path) -> None:
    rng = random.Random(2)
    schema = pa.schema([("c", pa.string())])
    with TableWriter(tmp_path / "t.parquet", schema) as writer:
        for _ in range(60):
            writer.write([{"c": rng.randbytes(300_000).hex()} for _ in range(3)])
    metadata = pq.ParquetFile(tmp_path / "t.parquet").metadata
    groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert metadata.num_rows == 180
    assert 3 <= len(groups) <= 12
    assert max(groups) < 48 * MIB


def write_much(path: Path) -> None:
    with TableWriter(path, pa.schema([("c", pa.string())])) as writer:
        for _ in range(60):
            writer.write([{"c": random.randbytes(100_000).hex()} for _ in range(10)])


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails in the same place."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "t.parquet"
    path.write_bytes(b"what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_much(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["t.parquet"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_by_its_number() -> None:
    import errno

    writer = ParquetWriter("/dev/full", pa.schema([("c", pa.string())]))
    writer.write(pa.record_batch({"c": ["text"]}))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        writer.finish()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, Path("/dev/full"))


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    schema = pa.schema([("c", pa.string())])
    with pytest.raises(FileNotFoundError), TableWriter(tmp_path / "no" / "t.parquet", schema):
        pass
    union = pa.sparse_union([pa.field("a", pa.int8())])
    with pytest.raises(ValueError, match=r"t\.parquet: "):
        ParquetWriter(tmp_path / "t.parquet", pa.schema([("c", union)]))


def test_a_reader_does_not_outlive_a_fork(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    pq.write_table(many_types(), tmp_path / "t.parquet", row_group_size=10)
    batches = ParquetFile(tmp_path / "t.parquet").batches(rows=10)
    next(batches)
    child = os.fork()
    if child == 0:
        try:
            next(batches)
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert sum(batch.num_rows for batch in batches) == 290  # type: ignore[union-attr]
