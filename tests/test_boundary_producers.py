"""What producers of columns really hand over: every container, odd buffers, and things that are no text."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import clair_apo.text as text

LEFT = ["kitten sat", None, "", "漢字 and 👍", "the same", "a text that is too long to be inlined"]
RIGHT = ["sitting sat", "b", "new", "漢子 and 👍🏽", "the same", None]
DISTANCES = [3, None, 3, 2, 0, None]


def one_column(values: Any) -> pa.Table:
    return pa.table({"text": pa.array(values, pa.string())})


def relation(values: Any) -> duckdb.DuckDBPyRelation:
    """On a connection of its own: one that streams a result takes no other query."""
    return duckdb.connect().from_arrow(one_column(values))


def dataset(values: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": values, "other": list(range(len(values)))})


CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "pyarrow table": one_column,
    "pyarrow batch": lambda v: one_column(v).to_batches()[0],
    "pyarrow reader": lambda v: one_column(v).to_reader(max_chunksize=2),
    "pyarrow table in chunks": lambda v: pa.concat_tables([one_column(v[:1]), one_column(v[1:])]),
    "sliced table": lambda v: one_column(["x", *v, "y"]).slice(1, len(v)),
    "polars frame": lambda v: pl.DataFrame({"text": v}),
    "polars frame in chunks": lambda v: pl.concat(
        [pl.DataFrame({"text": v[:2]}), pl.DataFrame({"text": v[2:]})], rechunk=False
    ),
    "pandas frame": lambda v: pd.DataFrame({"text": v}),
    "pandas frame with an index": lambda v: pd.DataFrame({"text": v}, index=range(9, 9 + len(v))),
    "pandas series with an index": lambda v: pd.Series(v, index=list("zzyxab")),
    "pandas series, filtered": lambda v: pd.Series(["x", *v, "y"])[[False, *([True] * len(v)), False]],
    "pandas objects": lambda v: pd.Series(v, dtype=object),
    "pandas category": lambda v: pd.Series(v, dtype="category"),
    "pandas string of Python": lambda v: pd.Series(v, dtype="string[python]"),
    "pandas Arrow view": lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.string_view())),
    "pandas array": lambda v: pd.Series(v, dtype="str").array,
    "pandas index": lambda v: pd.Index(v, dtype="str"),
    "numpy objects": lambda v: np.array(v, dtype=object),
    "numpy out of pandas": lambda v: pd.Series(v, dtype="str").to_numpy(),
    "numpy masked": lambda v: np.ma.masked_array(
        np.array(["" if x is None else x for x in v], dtype=object), [x is None for x in v]
    ),
    "DuckDB relation": relation,
    "DuckDB projection": lambda v: duckdb.from_arrow(
        one_column(v).append_column("number", pa.array(range(len(v))))
    ).project("text"),
    "DuckDB reader": lambda v: relation(v).to_arrow_reader(2),
    "DuckDB table": lambda v: relation(v).to_arrow_table()["text"],
    "DuckDB frame": lambda v: relation(v).df()["text"],
    "DuckDB polars": lambda v: relation(v).pl()["text"],
    "DuckDB numpy": lambda v: relation(v).fetchnumpy()["text"],
    "DuckDB enum": lambda v: relation(v).project(
        "cast(text as enum(" + ",".join(repr(x) for x in dict.fromkeys(v) if x is not None) + ")) as text"
    ),
    "datasets column": lambda v: dataset(v)["text"],
    "datasets column of a selection": lambda v: dataset(["x", *v, "y"]).select(range(1, 1 + len(v)))[
        "text"
    ],
    "datasets shuffled back": lambda v: dataset(v[::-1]).select(range(len(v))[::-1])["text"],
    "datasets batch": lambda v: dataset(v)[:]["text"],
    **{
        f"datasets as {kind}": lambda v, kind=kind: dataset(v).with_format(kind)["text"]
        for kind in ("arrow", "pandas", "polars", "numpy", "torch")
    },
    **{
        f"datasets batch as {kind}": lambda v, kind=kind: dataset(v).with_format(kind)[:]["text"]
        for kind in ("arrow", "pandas", "polars", "numpy")
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_on_either_side(container: str) -> None:
    make = CONTAINERS[container]
    assert text.levenshtein(make(LEFT), RIGHT).to_pylist() == DISTANCES
    assert text.levenshtein(LEFT, make(RIGHT)).to_pylist() == DISTANCES
    assert text.score(make(LEFT), make(RIGHT))["levenshtein"].to_pylist() == DISTANCES


def test_the_string_types_of_numpy() -> None:
    for kind in (None, np.dtypes.StringDType()):
        values = np.array(["漢字", "", "b"], dtype=kind)
        assert text.levenshtein(values, ["漢子", "a", "b"]).to_pylist() == [1, 1, 0]
    with pytest.raises(TypeError, match="`a` is of type ndarray"):
        text.levenshtein(np.array([["a"]]), ["a"])


def test_rows_are_paired_by_place_and_not_by_index() -> None:
    frame = pd.DataFrame({"a": ["x", "yy"], "b": ["yy", "x"]}, index=[0, 1])
    assert text.levenshtein(frame["a"], frame["b"].sort_index(ascending=False)).to_pylist() == [0, 0]


def test_what_is_read_once_is_used_up() -> None:
    reader = one_column(["a"]).to_reader()
    assert text.levenshtein(reader, ["b"]).to_pylist() == [1]
    with pytest.raises(ValueError, match="`a` has 0 rows and `b` has 1"):
        text.levenshtein(reader, ["b"])
    query = relation(["a"])
    assert text.levenshtein(query, query).to_pylist() == [0]


def test_a_query_with_a_python_function_in_its_threads() -> None:
    """The stream runs the query, whose threads wait for the interpreter: nobody may hold it meanwhile."""
    with duckdb.connect(config={"threads": 4}) as connection:
        connection.create_function("loud", lambda value: value + "!", ["VARCHAR"], "VARCHAR")
        table = pa.concat_tables([one_column(["a b"] * 5000)] * 8)
        connection.register("source", table)
        query = connection.sql("select loud(text) from source")
        assert set(text.levenshtein(query, table["text"]).to_pylist()) == {1}


def test_tables_of_several_columns_ask_for_one() -> None:
    table = pa.table({"prompt": ["p"], "chosen": ["c"]})
    for several in (table, pl.from_arrow(table), table.to_pandas(), duckdb.from_arrow(table)):
        with pytest.raises(TypeError, match="`b` is a table with the columns prompt, chosen: pass one"):
            text.levenshtein(["a"], several)
    indexed = table.to_pandas().set_axis([7])
    with pytest.raises(TypeError, match="the columns prompt, chosen: pass one"):
        text.levenshtein(indexed, ["a"])
    with pytest.raises(TypeError, match="`a` is a table without columns"):
        text.levenshtein(pa.array([{}], pa.struct([])), ["a"])
    with pytest.raises(TypeError, match="`a` is a column of structs"):
        text.levenshtein(pa.array([{"x": "y"}, None]), ["a", "b"])
    with pytest.raises(TypeError, match="`a` is of type Int64, which is not text"):
        text.levenshtein(pa.table({"number": [1]}), ["a"])


def test_what_is_lazy_is_to_be_collected() -> None:
    with pytest.raises(TypeError, match="LazyFrame, which is to be collected first"):
        text.levenshtein(pl.LazyFrame({"a": ["x"]}), ["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`a` is of type Dataset"):
        text.levenshtein(dataset(["x"]), ["a"])
    with pytest.raises(TypeError, match="`a` is of type generator"):
        text.levenshtein((x for x in "ab"), ["a", "b"])  # type: ignore[arg-type]


def test_maps_of_datasets() -> None:
    pairs = datasets.Dataset.from_dict({"rejected": LEFT, "chosen": RIGHT})
    lists = pairs.map(
        lambda batch: {"d": text.levenshtein(batch["rejected"], batch["chosen"]).to_pylist()},
        batched=True,
        batch_size=2,
    )
    tables = pairs.with_format("arrow").map(
        lambda batch: pa.table(text.score(batch["rejected"], batch["chosen"])),
        batched=True,
        remove_columns=pairs.column_names,
    )
    stream = pairs.to_iterable_dataset().map(
        lambda batch: {"d": text.levenshtein(batch["rejected"], batch["chosen"]).to_pylist()}, batched=True
    )
    assert lists["d"][:] == [row["d"] for row in stream] == DISTANCES
    assert tables.with_format(None)["levenshtein"][:] == DISTANCES


# --- buffers ---------------------------------------------------------------------------------------


def shifted(data: bytes) -> pa.Buffer:
    """The same bytes at an odd address."""
    return pa.py_buffer(b"\0" + data).slice(1)


@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_offsets_at_an_odd_address(width: Any) -> None:
    kind = pa.StringArray if width is np.int32 else pa.LargeStringArray
    offsets = shifted(np.array([0, 1, 3], width).tobytes())
    array = kind.from_buffers(2, offsets, shifted("aé".encode()))
    assert text.levenshtein(array, ["b", "é"]).to_pylist() == [1, 0]


def test_views_and_validity_at_an_odd_address() -> None:
    values = ["a text that is not inlined", None, "short"]
    validity, views, *data = pa.array(values, pa.string_view()).buffers()
    array = pa.Array.from_buffers(
        pa.string_view(), 3, [shifted(validity.to_pybytes()), shifted(views.to_pybytes()), *data]
    )
    assert text.levenshtein(array, values).to_pylist() == [0, None, 0]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 63, 64, 65])
def test_slices_at_every_bit_of_the_validity(start: int) -> None:
    values = [None if i % 3 == 0 else f"text {i}" for i in range(200)]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())):
        array = pa.array(values).cast(kind) if not pa.types.is_dictionary(kind) else pa.array(values, kind)
        part = array.slice(start, 70)
        expected = [None if v is None else 0 for v in values[start : start + 70]]
        assert text.levenshtein(part, values[start : start + 70]).to_pylist() == expected


@pytest.mark.parametrize("offsets", [[0, 100, 3], [0, 3, 1], [2, 1, 3]])
def test_offsets_that_lead_outside_are_an_error(offsets: list[int]) -> None:
    """pyarrow checks no more than the ends of what it is given, or reads from a file."""
    for width, kind in ((np.int32, pa.StringArray), (np.int64, pa.LargeStringArray)):
        buffer = pa.py_buffer(np.array(offsets, width).tobytes())
        array = kind.from_buffers(2, buffer, pa.py_buffer(b"abc"))
        with pytest.raises(ValueError, match=r"`a` is damaged: row 0 of chunk 0 lies outside"):
            text.levenshtein(array, ["a", "b"])


def test_views_that_lead_outside_are_an_error() -> None:
    data = pa.py_buffer(b"a text that is not inlined")
    for length, buffer, start in ((27, 0, 0), (20, 1, 0), (20, 0, 7), (2**31 - 1, 0, 0)):
        view = length | buffer << 64 | start << 96
        array = pa.Array.from_buffers(
            pa.string_view(), 1, [None, pa.py_buffer(view.to_bytes(16, "little")), data]
        )
        with pytest.raises(ValueError, match=r"`b` is damaged: row 0 of chunk 0 lies outside"):
            text.jaccard(["a"], array)


def test_keys_that_lead_outside_are_null() -> None:
    keys = pa.array([0, 7, -1, None], pa.int8())
    array = pa.DictionaryArray.from_arrays(keys, pa.array(["a"]), safe=False)
    assert text.levenshtein(array, ["a"] * 4).to_pylist() == [0, None, None, None]


def test_half_a_surrogate_pair_is_named() -> None:
    for values in (["a", "\ud800"], np.array(["a", "\ud800"], dtype=object)):
        with pytest.raises(ValueError, match="`b` holds half of a surrogate pair in row 1"):
            text.levenshtein(["a", "b"], values)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        text.diff("a", "\ud800")


# --- what is no column of text ---------------------------------------------------------------------

OTHER_TYPES = {
    "int": pa.array([1]),
    "half": pa.array([np.float16(1)]),
    "bytes": pa.array([b"x"]),
    "fixed bytes": pa.array([b"abc"], pa.binary(3)),
    "view of bytes": pa.array([b"x"], pa.binary_view()),
    "decimal": pa.array([decimal.Decimal(1)], pa.decimal256(50, 2)),
    "small decimal": pa.array([decimal.Decimal(1)], pa.decimal32(5, 2)),
    "time": pa.array([datetime.datetime(2026, 1, 1)], pa.timestamp("ns", "Europe/Berlin")),
    "duration": pa.array([datetime.timedelta(1)]),
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "list": pa.array([["x"]]),
    "list view": pa.array([["x"]], pa.list_view(pa.string())),
    "fixed list": pa.array([["x"]], pa.list_(pa.string(), 1)),
    "map": pa.array([[("x", "y")]], pa.map_(pa.string(), pa.string())),
    "union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array(["x"])]),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array(["x"])]
    ),
    "dictionary of ints": pa.array([1]).dictionary_encode(),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])),
    "uuid": pa.array([b"0" * 16], pa.uuid()),
    "nested": pa.array([{"x": {"y": "z"}}]),
    "polars object": pl.Series(["x"], dtype=pl.Object),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_types_are_a_type_error(kind: str) -> None:
    with pytest.raises(TypeError, match=r"`rejected` is of type .*, which is not text"):
        text.score(OTHER_TYPES[kind], ["a"])
    with pytest.raises(TypeError, match=r"`column` is of type .*, which is not text"):
        text.count_tokens(OTHER_TYPES[kind])


class Producer:
    """Hands over what it is told to, or raises it."""

    def __init__(self, method: str, value: Any) -> None:
        setattr(self, method, lambda requested_schema=None: self._give(value))

    @staticmethod
    def _give(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value


@pytest.mark.parametrize("method", ["__arrow_c_array__", "__arrow_c_stream__"])
def test_producers_that_hand_over_nonsense(method: str) -> None:
    """An ordinary error each time: no panic, which Python sees as a `BaseException` of its own kind."""
    schema, array = pa.array(["a"]).__arrow_c_array__()
    stream = pa.chunked_array([["a"]]).__arrow_c_stream__()
    nonsense = (
        None,
        "x",
        3,
        (),
        (None, None),
        (1,),
        schema,
        array,
        (array, schema),
        (schema, schema),
        [stream],
    )
    for value in nonsense:
        with pytest.raises((TypeError, ValueError, LookupError)):
            text.levenshtein(Producer(method, value), ["a"])
    with pytest.raises(RuntimeError, match="of the producer"):
        text.levenshtein(Producer(method, RuntimeError("of the producer")), ["a"])


def test_a_capsule_that_was_used_already() -> None:
    capsules = pa.array(["a"]).__arrow_c_array__()
    assert text.levenshtein(Producer("__arrow_c_array__", capsules), ["b"]).to_pylist() == [1]
    with pytest.raises(ValueError, match="no whole Arrow array"):
        text.levenshtein(Producer("__arrow_c_array__", capsules), ["b"])
    stream = pa.chunked_array([["a"]]).__arrow_c_stream__()
    assert text.levenshtein(Producer("__arrow_c_stream__", stream), ["b"]).to_pylist() == [1]
    with pytest.raises(ValueError, match="already released"):
        text.levenshtein(Producer("__arrow_c_stream__", stream), ["b"])


def test_a_stream_that_breaks_off() -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"text": ["x"]})
        raise OSError("the disk is gone")

    reader = pa.RecordBatchReader.from_batches(pa.schema([("text", pa.string())]), batches())
    with pytest.raises(RuntimeError, match=r"a column broke off.*the disk is gone"):
        text.levenshtein(reader, ["a"])
