"""The texts of each row beside the row itself: pairs found by `shapes`, put in the places of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from clair_apo.clean.rows import Spec
from clair_apo.shapes import PairBatch, Skipped, read_pairs


class PairsByRow:
    """Reads a spec's pairs along with its rows. `take` must be called in the order of the rows."""

    def __init__(self, spec: Spec, columns: Sequence[str] = ()) -> None:
        self._reader = read_pairs(spec, columns)
        self._names = ("rejected", "chosen", *columns)
        self._batches: Iterator[PairBatch] = iter(self._reader)
        self._batch: PairBatch | None = None

    def take(self, first_row: int, count: int) -> dict[str, Any]:
        """`rejected`, `chosen` and the optional columns of `count` rows from number `first_row` on, each an
        Arrow array with null where a row holds no pair."""
        end = first_row + count
        parts: list[PairBatch] = []
        while True:
            if self._batch is None:
                self._batch = next(self._batches, None)
            if self._batch is None or self._batch.row[0].as_py() >= end:
                break
            parts.append(self._batch)
            if self._batch.row[-1].as_py() >= end:
                break
            self._batch = None
        places = pa.array([None] * count, pa.int64()).to_pylist()
        offset = 0
        for part in parts:
            for at, row in enumerate(part.row.to_pylist()):
                if first_row <= row < end:
                    places[row - first_row] = offset + at
            offset += len(part)
        index = pa.array(places, pa.int64())
        found: dict[str, Any] = {}
        for name in self._names:
            columns = [
                getattr(p, name) if name in ("rejected", "chosen") else p.columns[name] for p in parts
            ]
            found[name] = _taken(columns, index)
        return found

    def skipped(self) -> dict[str, Skipped]:
        """Rows that hold no pair, by reason, once all rows have been taken."""
        for _ in self._batches:
            pass
        return self._reader.skipped


def _taken(columns: list[Any], index: pa.Array) -> Any:
    if not columns:
        return pa.nulls(len(index), pa.large_string())
    kinds = {column.type for column in columns}
    if len(kinds) > 1:
        columns = [column.cast(pa.large_string()) for column in columns]
    return pa.concat_arrays(columns).take(index)
