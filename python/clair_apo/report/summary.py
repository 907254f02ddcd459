"""The numbers of `clair-apo stats`: how contrastive a set of preference pairs is, and its
condition.

The two measures of the CLAIR paper's comparison (arXiv 2408.06266, section 3) are the means of
`jaccard` (higher is more contrastive) and `levenshtein` (lower is); the rest says what they hide.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from clair_apo.report.measure import Measure
from clair_apo.shapes import PairReader, read_pairs
from clair_apo.tables import MEASURES

SCHEMA = 1
NEAR_IDENTICAL = 0.02
BINS = 20
TENTHS = 10

Path = str | os.PathLike[str]
# Told the file, the rows read so far, and the rows in all (None where only reading would tell).
Progress = Callable[[str, int, int | None], None]
T = TypeVar("T")


def stats(files: Sequence[Path] | Path, on_progress: Progress | None = None) -> dict[str, Any]:
    """The numbers of each file (or folder, or glob), as `clair-apo stats --json` prints them.

    Lengths and edits are in characters (Unicode code points) or words, shares and ratios in 0 to 1
    (`length_ratio` is open above), cost in US dollars. Measures of a file without pairs are None.
    `histograms` has 21 edges and 20 counts a measure; the last bin reaches to the greatest value.
    Raises ClairError where a file is missing, unreadable, or holds no pair columns.
    """
    specs = [files] if isinstance(files, str | os.PathLike) else list(files)
    readers = [read_pairs(spec, ("flags", "method", "usage")) for spec in specs]
    return {"schema": SCHEMA, "files": [_Tally(r).run(on_progress) for r in readers]}


class _Tally:
    """Sums up one reader's pairs."""

    def __init__(self, reader: PairReader) -> None:
        self.reader = reader
        self.measures = {name: Measure(kind) for name, kind in MEASURES.items()}
        self.pairs = self.longer = self.identical = self.near_identical = 0
        self.positions = [0] * TENTHS
        self.flags: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self.usage: dict[str, float | None] = dict.fromkeys(("tokens_in", "tokens_out", "cost_usd"))

    def run(self, on_progress: Progress | None) -> dict[str, Any]:
        name, total = str(self.reader.spec), self.reader.total_rows
        for batch in _ahead(self.reader):
            self._add(batch)
            if on_progress is not None:
                on_progress(name, self.reader.rows_read, total)
        return self._result(name)

    def _add(self, batch: Any) -> None:
        from clair_apo import text

        scores = pa.table(text.score(batch.rejected, batch.chosen))
        for name, measure in self.measures.items():
            measure.add(scores[name])
        self.pairs += len(batch)
        self.longer += _count(pc.greater(scores["chosen_chars"], scores["rejected_chars"]))
        same = scores["identical"]
        near = pc.less_equal(scores["levenshtein_ratio"], NEAR_IDENTICAL)
        self.identical += _count(same)
        self.near_identical += _count(pc.and_(near, pc.invert(same)))
        for tenth in range(TENTHS):
            edits = pc.sum(pc.list_element(scores["edit_position"], tenth)).as_py()
            self.positions[tenth] += edits or 0
        _tally(self.flags, pc.list_flatten(batch.columns["flags"]))
        _tally(self.methods, batch.columns["method"])
        for part, so_far in self.usage.items():
            column = pc.struct_field(batch.columns["usage"], part).drop_null()
            # As float64, which neither wraps nor ends in infinity for any count or price there can be.
            column = column.cast(pa.float64(), safe=False)
            column = column.filter(pc.less(pc.abs(column), float(1 << 60)))
            if len(column):
                total = (so_far or 0) + pc.sum(column).as_py()
                self.usage[part] = total if part == "cost_usd" else round(total)

    def _result(self, name: str) -> dict[str, Any]:
        edits = sum(self.positions)
        skipped = self.reader.skipped
        return {
            "file": name,
            "pairs": self.pairs,
            "skipped": sum(s.rows for s in skipped.values()),
            "skipped_reasons": {
                reason: {"rows": s.rows, "first_row": s.first_row, "first": s.first}
                for reason, s in skipped.items()
            },
            **{name: measure.summary() for name, measure in self.measures.items()},
            "chosen_longer_share": self.longer / self.pairs if self.pairs else None,
            "identical": self.identical,
            "near_identical": self.near_identical,
            "edit_position": [n / edits for n in self.positions] if edits else None,
            "flags": dict(self.flags.most_common()),
            "methods": dict(self.methods.most_common()),
            **self.usage,
            "histograms": {name: _histogram(name, m) for name, m in self.measures.items()},
        }


def _histogram(name: str, measure: Measure) -> dict[str, list[float]] | None:
    if not measure.count:
        return None
    bound = {"length_ratio": 2.0}.get(name, 1.0)
    if not pa.types.is_floating(MEASURES[name]):
        bound = _nice(measure.quantile(0.99) / BINS) * BINS
    edges = [bound * i / BINS for i in range(BINS)]
    edges.append(max(bound, measure.quantile(1.0)))
    return {"edges": edges, "counts": list(measure.histogram(edges))}


def _nice(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 … that is at least `width`."""
    if width <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def _count(flags: Any) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _tally(counter: Counter[str], column: Any) -> None:
    for entry in pc.value_counts(column.drop_null()).to_pylist():
        counter[entry["values"]] += entry["counts"]


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """`items`, each fetched while the one before it is being used."""
    source = iter(items)
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        coming = pool.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item
