"""The quick way of stats, over decoded pages, against the plain one over rows."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo.report import stats
from clair_apo.shapes import PairReader

TEXT = st.sampled_from(["", "a b", "a c d", "ein Wörtchen 漢字", "\n\nHuman: q\n\nAssistant: a b", " x"])
TRANSCRIPT = st.sampled_from(
    ["\n\nHuman: q\n\nAssistant:", "\n\nHuman: q", "\n\nHuman: a\n\nAssistant: b\n\nAssistant:  c d"]
)
ROLE = st.sampled_from(["assistant", "user", "gpt", "", None, "bot", "Assistant"])


def messages(fields: dict[str, Any]) -> st.SearchStrategy[Any]:
    message = st.fixed_dictionaries(fields)
    return st.none() | st.lists(st.none() | message, max_size=4)


SIDES = [
    st.none() | TEXT | TRANSCRIPT,
    messages({"role": ROLE, "content": st.none() | TEXT}),
    messages({"from": ROLE, "value": st.none() | TEXT}),
    messages({"role": ROLE, "from": ROLE, "content": st.none() | TEXT, "value": st.none() | TEXT}),
    messages({"role": ROLE, "content": st.none() | TEXT, "n": st.integers(0, 9)}),
]
MORE = {
    "flags": st.none() | st.lists(st.none() | TEXT, max_size=3),
    "method": st.none() | st.sampled_from(["clair", "other"]),
    "usage": st.none()
    | st.fixed_dictionaries(
        {
            "tokens_in": st.none() | st.integers(0, 10**6),
            "tokens_out": st.none() | st.integers(0, 2**62),
            "cost_usd": st.none() | st.sampled_from([0.25, 1.5, 2.0]),
        }
    ),
    "prompt": st.just("p"),
}


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    columns = {"chosen": draw(st.sampled_from(SIDES)), "rejected": draw(st.sampled_from(SIDES))}
    columns |= {name: kind for name, kind in MORE.items() if draw(st.booleans())}
    return draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=12))


LAYOUTS = [
    lambda array: array,
    lambda array: array.cast(pa.large_string()) if pa.types.is_string(array.type) else array,
    lambda array: array.cast(pa.string_view()) if pa.types.is_string(array.type) else array,
    lambda array: array.dictionary_encode() if pa.types.is_string(array.type) else array,
    lambda array: (
        array.cast(pa.large_list(array.type.value_type)) if pa.types.is_list(array.type) else array
    ),
]


@settings(max_examples=150, deadline=None)
@given(tables(), st.sampled_from(LAYOUTS), st.integers(1, 12))
def test_the_quick_way_and_the_plain_one_agree(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], layout: Any, group: int
) -> None:
    path = tmp_path_factory.mktemp("quick") / "t.parquet"
    columns = {name: layout(pa.array([row[name] for row in rows])) for name in rows[0]}
    try:
        pq.write_table(pa.table(columns), path, row_group_size=group)
    except pa.ArrowNotImplementedError:  # nothing but empty structs
        return
    quick = stats(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairReader, "tallied", lambda *_: None)
        plain = stats(path)
    for found in (quick, plain):  # sums in another order
        for part in found["files"][0].values():
            if isinstance(part, dict) and "std" in part:
                part["mean"], part["std"] = (
                    pytest.approx(part[k], rel=1e-9, abs=1e-12) for k in ("mean", "std")
                )
    assert {**quick["files"][0], "flags": None} == {**plain["files"][0], "flags": None}
    assert sorted(quick["files"][0]["flags"].items()) == sorted(plain["files"][0]["flags"].items())


def test_ordinary_files_need_no_pyarrow(shared_data: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom clair_apo.report import stats\n"
        f"found = stats({str(shared_data / 'pairs_revision.parquet')!r})['files'][0]\n"
        "assert found['pairs'] == 200\nassert 'pyarrow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rows_out_of_the_ordinary_are_named(tmp_path: Path) -> None:
    good = [{"role": "assistant", "content": "a b"}]
    cells = [good, None, [], [{"role": "user", "content": "q"}], good, [{"role": "gpt", "content": None}]]
    pq.write_table(pa.table({"chosen": cells, "rejected": [good] * 6}), tmp_path / "t.parquet")
    found = stats(tmp_path / "t.parquet")["files"][0]
    assert (found["pairs"], found["skipped"]) == (2, 4)
    assert {k: v["first_row"] for k, v in found["skipped_reasons"].items()} == {
        "null": 1,
        "empty_list": 2,
        "no_assistant_message": 3,
        "no_text": 5,
    }


def test_columns_of_a_wrong_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"chosen": [1, 2], "rejected": ["a", "b"]}), tmp_path / "t.parquet")
    found = stats(tmp_path / "t.parquet")["files"][0]
    assert found["pairs"] == 0
    assert found["skipped_reasons"]["wrong_type"]["rows"] == 2
    assert "`chosen` is a number" in found["skipped_reasons"]["wrong_type"]["first"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    texts = [f"{i} " + " ".join(str(i * k % 977) for k in range(1500)) for i in range(600)]
    table = pa.table({"chosen": texts, "rejected": [t[::-1] for t in texts]})
    with pq.ParquetWriter(tmp_path / "t.parquet", table.schema) as writer:
        for _ in range(40):
            writer.write_table(table)
    process = subprocess.Popen(
        [sys.executable, "-m", "clair_apo.cli", "stats", str(tmp_path / "t.parquet")],
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.0)
    assert process.poll() is None, "it must still be at work"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.wait(60) == 130
    assert time.monotonic() - start < 20  # to its end it would take minutes
    assert process.stderr is not None
    assert process.stderr.read().strip() == "clair-apo: interrupted"
