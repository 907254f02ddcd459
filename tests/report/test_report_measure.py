"""Distributions against numpy: exact while all values are kept, within 0.1% of rank beyond."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_apo.report.measure import EXACT, QUANTILES, Measure


def expected(values: Any) -> dict[str, float]:
    quantiles = {name: np.quantile(values, q) for name, q in QUANTILES.items()}
    return {
        "mean": np.mean(values),
        "std": np.std(values),
        "min": np.min(values),
        **quantiles,
        "max": np.max(values),
    }


def filled(values: Any, kind: Any, **kwargs: Any) -> Measure:
    measure = Measure(kind, **kwargs)
    cuts = sorted(random.Random(1).choices(range(len(values) + 1), k=5))
    for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True):
        measure.add(pa.chunked_array([pa.array(values[a:b], kind)], kind))
    return measure


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_floats_are_exact(values: list[float]) -> None:
    found = filled(values, pa.float64()).summary()
    assert found == pytest.approx(expected(np.array(values)), rel=1e-12, abs=1e-8)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_integers_are_exact(values: list[int]) -> None:
    measure = filled(values, pa.uint32())
    for name, q in QUANTILES.items():  # to the last bit, as numpy interpolates
        assert measure.quantile(q) == float(np.quantile(np.array(values, float), q)), name
    assert measure.summary() == pytest.approx(expected(np.array(values)), rel=1e-12)


def test_nulls_and_slices_are_left_out() -> None:
    measure = Measure(pa.float64())
    assert measure.summary() is None
    measure.add(pa.array([9.0, 1.0, None, 3.0, 9.0]).slice(1, 3))
    assert (measure.count, measure.summary()) == (2, pytest.approx(expected(np.array([1, 3]))))


def test_a_full_buffer_of_real_size_is_exact() -> None:
    values = np.random.default_rng(0).lognormal(7, 1, EXACT)
    measure = Measure(pa.float64())
    measure.add(pa.array(values))
    found = measure.summary()
    assert found is not None
    assert found.pop("mean") == pytest.approx(values.mean(), rel=1e-12)
    assert found.pop("std") == pytest.approx(values.std(), rel=1e-12)
    want = expected(values)
    assert found == {name: want[name] for name in found}


@pytest.mark.parametrize("order", ["random", "sorted", "backwards", "waves", "few"])
def test_beyond_it_ranks_stay_within_a_thousandth(order: str) -> None:
    """A 64th of the real buffer, filled as often as it is by 128 million values."""
    n, exact = 2_000_000, 1 << 14
    rng = np.random.default_rng(1)
    values = rng.gamma(2, 300, n).astype(np.uint32)
    if order == "few":
        values = rng.integers(0, 5, n).astype(np.uint32)
    elif order != "random":
        values.sort()
    if order == "backwards":
        values = values[::-1]
    elif order == "waves":
        values = values.reshape(-1, 100).T.ravel()
    measure = Measure(pa.uint32(), exact)
    for part in np.array_split(values, 500):
        measure.add(pa.array(part))
    ranked, found = np.sort(values), measure.summary()
    assert found is not None
    for name, q in QUANTILES.items():
        low, high = (
            np.searchsorted(ranked, found[name]),
            np.searchsorted(ranked, found[name], "right"),
        )
        off = max(0, low - q * (n - 1), q * (n - 1) - high)
        # The bound that the module gives, for this buffer; it is 1/64 of this for the real one.
        assert off / n <= (16 + 8 * np.log2(n / exact)) / exact, name
        assert off / n <= 0.001, name
    assert (found["min"], found["max"], measure.count) == (ranked[0], ranked[-1], n)
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(values.std(), rel=1e-10)
    assert len(measure._runs) < 12
    assert sum(measure.histogram([0, 300, 600, float(ranked[-1])])) == n


@pytest.mark.parametrize("exact", [EXACT, 256])
def test_histogram(exact: int) -> None:
    values = np.random.default_rng(2).random(1000)
    edges = [0, 0.25, 0.5, 0.5001, float(values.max())]
    counts = filled(list(values), pa.float64(), exact=exact).histogram(edges)
    want = np.histogram(values, edges)[0]
    if exact == EXACT:
        assert counts == list(want)
    assert sum(counts) == pytest.approx(1000, abs=16)
    assert np.abs(np.array(counts) - want).max() <= 64
