"""Columns from every producer, results for every consumer, and what a long call must not break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from arro3.core import Array
from arro3.core import ChunkedArray as Arro3Chunked

import clair_apo.polars  # noqa: F401
import clair_apo.text as text

LEFT = ["kitten sat", None, "", "漢字 and 👍", "the same", "a text that is too long to be inlined"]
RIGHT = ["sitting sat", "b", "new", "漢子 and 👍🏽", "the same", None]
DISTANCES = [3, None, 3, 2, 0, None]


def chunked(values: list[str | None], bounds: list[int], kind: pa.DataType) -> pa.ChunkedArray:
    parts = np.split(np.arange(len(values)), bounds)
    return pa.chunked_array([pa.array([values[i] for i in part], kind) for part in parts], kind)


class StreamOnly:
    """A producer that offers a stream and nothing else, as a DuckDB relation does."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        return self.inner.__arrow_c_stream__(requested_schema)


PRODUCERS = {
    "list": list,
    "tuple": tuple,
    "string": lambda v: pa.array(v, pa.string()),
    "large_string": lambda v: pa.array(v, pa.large_string()),
    "string_view": lambda v: pa.array(v, pa.string_view()),
    "dictionary": lambda v: pa.array(v, pa.string()).dictionary_encode(),
    "large dictionary": lambda v: pa.array(v, pa.large_string()).dictionary_encode(),
    "int8 dictionary": lambda v: (
        pa.array(v, pa.string()).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
    ),
    "sliced": lambda v: pa.array(["x", None, *v, "y"], pa.string()).slice(2, len(v)),
    "sliced view": lambda v: pa.array(["x", *v, "y"], pa.string_view()).slice(1, len(v)),
    "sliced dictionary": lambda v: (
        pa.array(["x", *v, "y"], pa.string()).dictionary_encode().slice(1, len(v))
    ),
    "chunked": lambda v: chunked(v, [1, 1, 4], pa.string()),
    "chunked view": lambda v: chunked(v, [3], pa.string_view()),
    "chunked dictionary": lambda v: chunked(v, [2, 5], pa.large_string()).dictionary_encode(),
    "stream": lambda v: StreamOnly(chunked(v, [2], pa.string())),
    "polars": pl.Series,
    "polars chunked": lambda v: pl.Series(v[:2]).append(pl.Series(v[2:])),
    "polars categorical": lambda v: pl.Series(v, dtype=pl.Categorical),
    "pandas": lambda v: pd.Series(v, dtype="str"),
    "arro3": lambda v: Array(pa.array(v, pa.string())),
    "arro3 chunked": lambda v: Arro3Chunked(chunked(v, [4], pa.string())),
}


@pytest.mark.parametrize("left", PRODUCERS)
def test_any_producer_beside_any_other(left: str) -> None:
    for make in PRODUCERS.values():
        result = text.levenshtein(PRODUCERS[left](LEFT), make(RIGHT))
        assert result.to_pylist() == DISTANCES


@pytest.mark.parametrize("kind", PRODUCERS)
def test_one_column(kind: str) -> None:
    assert text.count_tokens(PRODUCERS[kind](RIGHT)).to_pylist()[:3] == [3, 1, 1]
    assert text.count_tokens(PRODUCERS[kind](LEFT)).to_pylist()[1] is None


def test_empty_and_all_null_columns() -> None:
    for nothing in ([], pa.array([], pa.string()), pa.chunked_array([], pa.string_view())):
        assert text.jaccard(nothing, nothing).to_pylist() == []
        assert text.score(nothing, nothing).num_rows == 0
    assert text.jaccard(pa.nulls(2), ["a", "b"]).to_pylist() == [None, None]
    assert text.jaccard([None, None], pl.Series([None, None])).to_pylist() == [None, None]
    empty = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([], pa.string()))
    assert text.jaccard(empty, ["a"]).to_pylist() == [None]


def test_results_are_read_by_others() -> None:
    distances = text.levenshtein(LEFT, RIGHT)
    assert pa.array(distances).to_pylist() == DISTANCES
    assert pa.array(distances).type == pa.uint32()
    assert pl.Series(distances).to_list() == DISTANCES
    table = pa.table(text.score(LEFT, RIGHT))
    assert table.schema.field("edit_position").type == pa.list_(pa.uint32(), 10)
    assert table["levenshtein"].to_pylist() == DISTANCES
    assert pl.DataFrame(text.score(LEFT, RIGHT))["levenshtein"].to_list() == DISTANCES


def test_what_is_not_a_pair_of_text_columns_is_named() -> None:
    with pytest.raises(ValueError, match=r"`rejected` has 1 rows and `chosen` has 2"):
        text.score(["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"`a` has 3 rows and `b` has 2"):
        text.jaccard(chunked(["x"] * 3, [1], pa.string()), pl.Series(["a", "b"]))
    for wrong in (pa.array([1]), pa.array([b"x"]), pl.Series([1.5]), pa.array([["x"]])):
        with pytest.raises(TypeError, match=r"`chosen` is of type .*not text"):
            text.score(["a"], wrong)
    with pytest.raises(TypeError, match=r"`chosen` is of type"):
        text.score([], pa.chunked_array([], pa.int32()))
    with pytest.raises(TypeError, match=r"`column` holds a value of type int in row 1"):
        text.count_tokens(["a", 1])  # type: ignore[list-item]
    for wrong in ("a text", b"bytes", 3, {"a"}):
        with pytest.raises(TypeError, match=r"`a` is of type"):
            text.levenshtein(wrong, ["a"])  # type: ignore[arg-type]


def test_polars_expressions() -> None:
    frame = pl.DataFrame({"rejected": LEFT, "chosen": RIGHT})
    rejected, chosen = pl.col("rejected"), pl.col("chosen")
    measures = {
        "chars": rejected.clair.levenshtein(chosen),
        "words": rejected.clair.word_edits("chosen"),
        "ratio": rejected.clair.levenshtein_ratio(chosen),
        "jaccard": rejected.clair.jaccard(chosen),
        "tokens": chosen.clair.count_tokens(),
        "fixed": rejected.clair.levenshtein(pl.lit("kitten")),
    }
    for result in (frame.select(**measures), frame.lazy().select(**measures).collect()):
        assert result["chars"].to_list() == DISTANCES
        assert result["words"].to_list() == text.levenshtein(LEFT, RIGHT, "word").to_pylist()
        assert result["ratio"].to_list() == text.levenshtein_ratio(LEFT, RIGHT).to_pylist()
        assert result["jaccard"].to_list() == text.jaccard(LEFT, RIGHT).to_pylist()
        assert result["tokens"].to_list() == text.count_tokens(RIGHT).to_pylist()
        assert result["fixed"].to_list()[:3] == [4, None, 6]
        assert result.schema["chars"] == pl.UInt32


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_importing_it_brings_no_heavy_module() -> None:
    process = python(
        """
        import sys
        import clair_apo.text as text
        text.score(["a b"], ["a c"])
        heavy = {"pyarrow", "polars", "pandas", "numpy", "torch"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert process.communicate(timeout=120)[0].strip() == "[]"


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    "work",
    [
        "text.levenshtein(['ab' * 120_000] * 64, ['ba' * 119_000 + 'c'] * 64)",
        "text.levenshtein(['a' * 250_000], ['b' * 250_000])",
        "[text.diff('a b ' * 60_000, 'c d e ' * 55_000) for _ in range(1000)]",
    ],
    ids=["many pairs", "one pair", "diff"],
)
def test_an_interrupt_ends_long_work(work: str) -> None:
    process = python(
        f"""
        import time
        import clair_apo.text as text
        text.levenshtein(["a"], ["b"])
        print("ready", flush=True)
        start = time.monotonic()
        try:
            {work}
            print("finished")
        except KeyboardInterrupt:
            print("interrupted")
        print(text.levenshtein(["a"], ["b"]).to_pylist())
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.4)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out.split("\n")[:2] == ["interrupted", "[1]"], err
    assert time.monotonic() - sent < 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    process = python(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        import clair_apo.text as text
        pairs = ["some words " * 50] * 64, ["other words " * 50] * 64
        before = text.score(*pairs)["levenshtein"].to_pylist()
        child = os.fork()
        if child == 0:
            os._exit(0 if text.score(*pairs)["levenshtein"].to_pylist() == before else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(text.score(*pairs)["levenshtein"].to_pylist() == before)
        """
    )
    out, err = process.communicate(timeout=120)
    assert out.split() == ["0", "True"], err


def test_other_threads_run_meanwhile() -> None:
    a, b = "ab" * 60_000, "ba" * 55_000 + "c"
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.005):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.monotonic()
    text.levenshtein([a], [b])
    seconds = time.monotonic() - start
    done.set()
    thread.join()
    assert ticks > seconds / 0.005 / 10


def test_threads_can_share_it() -> None:
    expected = text.score(LEFT, RIGHT)["levenshtein"].to_pylist()
    results: list[list[int | None]] = []

    def work() -> None:
        for _ in range(50):
            results.append(text.score(LEFT, RIGHT)["levenshtein"].to_pylist())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 400
    assert all(result == expected for result in results)


@pytest.mark.parametrize("layout", [pa.string(), pa.large_string(), pa.string_view()])
def test_bytes_that_are_no_utf8_are_an_error_that_names_the_column(layout: pa.DataType) -> None:
    """pyarrow does not check what it reads from a damaged file."""
    binary = {"string": pa.binary(), "large_string": pa.large_binary(), "string_view": pa.binary_view()}
    bad = pa.array([b"fine", b"caf\xc3"], binary[str(layout)]).view(layout)
    for measure in (text.score, text.levenshtein, text.jaccard):
        with pytest.raises(ValueError, match="UTF-8 \\(row 1 of chunk 0\\)"):
            measure(["a", "b"], bad)
    with pytest.raises(ValueError, match="`column` holds text that is not UTF-8"):
        text.count_tokens(bad.dictionary_encode() if layout == pa.string() else bad)
