"""The input: every format, and what is wrong with it said with file, row and column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clair_apo.build.rows import Columns, Input, InputRow, UnusableRow
from clair_apo.errors import ClairError


def read(spec: object, **more: Any) -> list[InputRow | UnusableRow]:
    source = Input(str(spec), Columns(), **more)
    return [row for chunk in source.chunks() for row in chunk.rows]


def good(spec: object, **more: Any) -> list[InputRow]:
    found = read(spec, **more)
    assert all(isinstance(row, InputRow) for row in found), found
    return [row for row in found if isinstance(row, InputRow)]


TABLE = {"prompt": ["a?", "b?"], "response": ["A.", None], "n": [1, 2]}


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    lines = "".join(json.dumps({k: v[i] for k, v in TABLE.items()}) + "\n" for i in range(2))
    pq.write_table(pa.table(TABLE), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\ufeff" + lines + "\n\n")
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pa.output_stream(str(tmp_path / "t.jsonl.zst"), compression="zstd") as file:
        file.write(lines.encode())
    (tmp_path / "t.csv").write_text('prompt,response,n\r\na?,A.,1\r\n"b?",,2\r\n')
    expected = good(tmp_path / "t.parquet")
    assert [(r.messages, r.response) for r in expected] == [
        ([{"role": "user", "content": "a?"}], "A."),
        ([{"role": "user", "content": "b?"}], None),
    ]
    for name in ("t.jsonl", "t.jsonl.gz", "t.jsonl.zst", "t.csv"):
        assert good(tmp_path / name) == expected, name
    everything = good(tmp_path)
    assert [row.number for row in everything] == list(range(10))
    assert [row.repeat for row in everything] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(good(tmp_path / "*.parquet")) == 2


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_every_kind_of_text_column(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table(
        {
            "prompt": pa.array(["a?"], kind),
            "response": pa.array(["A."], kind),
            "topic": pa.array(["x"], kind),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert good(tmp_path / "t.parquet")[0].response == "A."
    source = Input(str(tmp_path / "t.parquet"), Columns())
    extra = source.survey().extra
    assert next(iter(source.chunks(extra))).extra.to_pylist() == [{"topic": "x"}]


def test_message_lists(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    pq.write_table(pa.table({"prompt": [turns]}), tmp_path / "t.parquet")
    assert good(tmp_path / "t.parquet")[0].messages == turns
    (tmp_path / "t.csv").write_text('prompt\n"' + json.dumps(turns).replace('"', '""') + '"\n')
    assert good(tmp_path / "t.csv")[0].messages == turns
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"prompt": parts, "response": [{"role": "assistant", "content": "R"}]})
    )
    row = good(tmp_path / "t.jsonl")[0]
    assert (row.messages, row.response) == ([{"role": "user", "content": "ab"}], "R")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("[]", "empty"),
        (
            '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]',
            "column of its own",
        ),
        ('[{"role": "boss", "content": "x"}]', "role 'boss'"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "other than text"),
        ('["x"]', "is a string"),
        ("true", "boolean"),
        ('{"a": 1}', "object"),
        ('"  "', "empty"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, cell: str, words: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"prompt": {cell}}}\n{{"prompt": "fine"}}\n')
    bad, fine = read(tmp_path / "t.jsonl")
    assert isinstance(bad, UnusableRow)
    assert isinstance(fine, InputRow)
    assert words in bad.message
    assert "t.jsonl, row 0, column 'prompt'" in bad.message


def test_broken_csv_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"prompt,response\na,A\nb\nc,C,too much\n\xff\xfe,D\ne,E\n")
    found = read(tmp_path / "t.csv")
    assert [type(row).__name__ for row in found] == [
        "InputRow",
        "UnusableRow",
        "UnusableRow",
        "UnusableRow",
        "InputRow",
    ]
    assert "1 cells where the header has 2" in found[1].message  # type: ignore[union-attr]
    assert "not valid Unicode" in found[3].message  # type: ignore[union-attr]


def test_a_stream_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": f"{i} {'x' * 500}", "n": i * 7919}) + "\n" for i in range(4000))
    data = gzip.compress(lines.encode())
    (tmp_path / "t.jsonl.gz").write_bytes(data[: len(data) // 2])
    found = read(tmp_path / "t.jsonl.gz")
    assert sum(isinstance(row, InputRow) for row in found) > 1000
    assert isinstance(found[-1], UnusableRow)


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"prompt": [f"prompt {i} {'y' * 50}" for i in range(300)]})
    pq.write_table(table, path, row_group_size=100, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = group.data_page_offset
    data[begin : begin + group.total_compressed_size] = b"\xaa" * group.total_compressed_size
    path.write_bytes(data)
    found = read(path)
    assert [isinstance(row, InputRow) for row in found] == [True] * 100 + [False] * 100 + [True] * 100
    assert "row group 1 of t.parquet" in found[150].message  # type: ignore[union-attr]
    assert "row 150" in found[150].message  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("t.jsonl", b'{"question": "x"}\n', "no column 'prompt'; it has question"),
        ("t.csv", b"a,b\n1,2\n", "no column 'prompt'; it has a, b"),
        ("t.txt", b"hm", "must end in"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClairError, match=words) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_a_column_of_a_wrong_type_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(ClairError, match="column 'prompt' is of type int64"):
        read(tmp_path / "t.parquet")
    with pytest.raises(ClairError, match="no such file"):
        read(tmp_path / "none.parquet")


def test_ids(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"prompt": ["a", "b", "a"], "response": ["x", "x", "x"], "key": [7, 8, 9]}),
        tmp_path / "t.parquet",
    )
    ids = [row.id for row in good(tmp_path / "t.parquet")]
    assert ids[2] == f"{ids[0]}-2"
    assert [row.id for row in good(tmp_path / "t.parquet", sample=2, seed=1)] == [
        i for i in ids if i in {row.id for row in good(tmp_path / "t.parquet", sample=2, seed=1)}
    ]
    own = Input(str(tmp_path / "t.parquet"), Columns(id="key"))
    assert [row.id for chunk in own.chunks() for row in chunk.rows] == ["7", "8", "9"]


def test_other_columns_of_any_type_come_along(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a"],
            "messages": [[{"role": "x", "content": "y"}]],
            "when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
            "nothing": pa.nulls(1),
            "price": pa.array(["1.25"]).cast(pa.decimal128(9, 2)),
            "blob": [b"\x00\xff"],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = Input(str(tmp_path / "t.parquet"), Columns())
    extra = source.survey().extra
    carried = next(iter(source.chunks(extra))).extra
    assert carried.field("when").type == pa.timestamp("ns", "UTC")
    assert carried.field("when").cast(pa.int64()).to_pylist() == [1_700_000_000_123_456_789]
    assert carried.field("nothing").type == pa.string()
    assert carried.field("map").to_pylist() == [[("k", 1)]]


def test_loose_columns_find_one_type(tmp_path: Path) -> None:
    records = [
        {"prompt": "a", "n": 1, "m": 1, "d": {"x": 1}, "late": None},
        {"prompt": "b", "n": 2.5, "m": "one", "d": {"x": 2}},
        {"prompt": "c", "n": None, "m": [1], "d": None, "late": [True]},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    source = Input(str(tmp_path / "t.jsonl"), Columns())
    extra = source.survey().extra
    assert next(iter(source.chunks(extra))).extra.to_pylist() == [
        {"n": 1.0, "m": "1", "d": {"x": 1}, "late": None},
        {"n": 2.5, "m": "one", "d": {"x": 2}, "late": None},
        {"n": None, "m": "[1]", "d": None, "late": [True]},
    ]


def test_text_that_is_no_utf8_costs_its_own_row(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"a\xff\xfeb")],
    )
    pq.write_table(pa.table({"prompt": column}), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert [isinstance(row, InputRow) for row in found] == [True, False, True]
    assert "row 1: text that is not UTF-8" in found[1].message  # type: ignore[union-attr]


def test_a_folder_means_its_tables_of_rows(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.failures.parquet", "a.dropped.parquet", ".a.parquet"):
        pq.write_table(pa.table({"prompt": [name]}), tmp_path / name)
    (tmp_path / "notes.txt").write_text("no table")
    assert [row.messages[0]["content"] for row in good(tmp_path)] == ["a.parquet"]


def test_so_does_a_pattern_but_for_one_that_means_the_others(tmp_path: Path) -> None:
    for name in ("a.x.parquet", "a.x.failures.parquet", "a.x.dropped.parquet", "a.y.parquet"):
        pq.write_table(pa.table({"prompt": [name]}), tmp_path / name)
    for pattern, names in (
        ("a.*.parquet", ["a.x.parquet", "a.y.parquet"]),
        ("*.dropped.parquet", ["a.x.dropped.parquet"]),
        ("a.x.*.parquet", ["a.x.dropped.parquet", "a.x.failures.parquet"]),
    ):
        assert [row.messages[0]["content"] for row in good(tmp_path / pattern)] == names


@pytest.mark.parametrize(
    "values",
    [
        [{}, {}],
        [[{}]],
        [1, 2**63],
        [2**70, 1.5],
        [2**60 + 1, 1.5],
        [{"y": {"a": "\udfff"}}],
        [[1], {"a": 1}, "x"],
        [json.loads("[" * 900 + "]" * 900)],
        [{"a": 1}, {"b": [None, 2.5]}, {"a": 2, "b": [1]}],
        [float("nan"), None],
    ],
)
def test_no_loose_column_can_break_a_table(tmp_path: Path, values: list[Any]) -> None:
    from clair_apo.tables import TableWriter

    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"prompt": "a", "odd": value}) + "\n" for value in values)
    )
    source = Input(str(tmp_path / "t.jsonl"), Columns())
    extra = source.survey().extra
    assert extra is not None
    carried = next(iter(source.chunks(extra))).extra
    assert len(carried) == len(values)
    for name in ("out.parquet", "out.jsonl"):
        schema = pa.schema([("id", pa.string()), ("extra", extra)])
        with TableWriter(tmp_path / name, schema) as table:
            table.write([{"id": str(n)} for n in range(len(values))], carried)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == len(values)
    assert carried.field("odd").null_count == sum(value is None for value in values)


def test_an_open_quote_does_not_swallow_rows_in_silence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('prompt,response\nq0,r\nq,"r one\nq2,r two\n')
    found = read(tmp_path / "t.csv")
    assert isinstance(found[0], InputRow)
    assert isinstance(found[1], UnusableRow)
    (tmp_path / "u.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(ClairError, match="more than once"):
        read(tmp_path / "u.csv")
