from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from clair_apo.train.reference import Key, References

KEY = Key("weights", "float32")
PAIRS = [bytes([n]) * 16 for n in range(1, 6)]


def test_what_was_computed_is_found_again(tmp_path: Path) -> None:
    first = References(KEY, PAIRS, tmp_path)
    assert first.missing([0, 1])
    first.put([0, 3], np.array([-1.5, -2.5]), np.array([-3.0, -4.0]))
    first.save()
    again = References(KEY, list(reversed(PAIRS)), tmp_path)
    assert not again.missing([4, 1])
    assert again.missing([0])
    assert (again.chosen[4], again.rejected[1]) == (-1.5, -4.0)


def test_other_weights_and_dtypes_are_other_files(tmp_path: Path) -> None:
    one = References(KEY, PAIRS, tmp_path)
    one.put(range(5), np.zeros(5), np.zeros(5))
    one.save()
    for key in (Key("other", "float32"), Key("weights", "bfloat16")):
        assert References(key, PAIRS, tmp_path).missing([0])


def test_two_runs_add_to_one_file(tmp_path: Path) -> None:
    one, two = References(KEY, PAIRS[:3], tmp_path), References(KEY, PAIRS[2:], tmp_path)
    one.put(range(3), np.arange(3.0), np.arange(3.0))
    two.put(range(3), np.arange(10.0, 13), np.arange(3.0))
    one.save()
    two.save()
    both = References(KEY, PAIRS, tmp_path)
    assert both.chosen.tolist() == [0.0, 1.0, 2.0, 11.0, 12.0]
    assert sorted(os.listdir(tmp_path)) == [f"{KEY.name}.npy"]


def test_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    (tmp_path / f"{KEY.name}.npy").write_bytes(b"\x93NUMPY\x01\x00nothing")
    found = References(KEY, PAIRS, tmp_path)
    assert found.missing([0])
    found.put(range(5), np.ones(5), np.ones(5))
    found.save()
    assert not References(KEY, PAIRS, tmp_path).missing(range(5))
