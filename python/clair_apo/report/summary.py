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
from itertools import pairwise
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

from clair_apo._core import MEASURES, Distribution, Tally
from clair_apo.files import suffix
from clair_apo.lazy import Lazy
from clair_apo.shapes import PairReader, Pending, read_pairs

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    pa, pc = Lazy("pyarrow"), Lazy("pyarrow.compute")

SCHEMA = 1
BINS = 20
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
USAGE = ("tokens_in", "tokens_out", "cost_usd")

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
    return {"schema": SCHEMA, "files": [_Summary(r).run(on_progress) for r in readers]}


class _Summary:
    """Sums up one reader's pairs: in the core, but for what rows out of the ordinary carry besides."""

    def __init__(self, reader: PairReader) -> None:
        self.reader = reader
        self.tally = Tally()
        self.flags: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self.usage: dict[str, float | None] = dict.fromkeys(USAGE)

    def run(self, on_progress: Progress | None) -> dict[str, Any]:
        name, total = str(self.reader.spec), self.reader.total_rows
        self.reader.restart()
        for path in self.reader.paths:
            for _ in self._file(path):
                if on_progress is not None:
                    on_progress(name, self.reader.rows_read, total)
        return self._result(name)

    def _file(self, path: FilePath) -> Iterator[None]:
        """Adds the pairs of a file; gives a None after each part."""
        if suffix(path) != ".parquet":
            for pending in _ahead(self.reader.text_rows(path)):
                self._add_rows(pending)
                yield
            return
        quick = self.reader.tallied(path, self.tally)
        for batch in _ahead(self.reader.batches(path)) if quick is None else quick:
            if batch is not None:
                self._add(batch)
            yield

    def _add_rows(self, pending: Pending) -> None:
        self.tally.add_texts(pending.rejected, pending.chosen)
        self.flags.update(flag for flags in pending.columns["flags"] for flag in flags or ())
        self.methods.update(name for name in pending.columns["method"] if name is not None)
        for usage in pending.columns["usage"]:
            for part in USAGE:
                value = None if usage is None else usage[part]
                if value is not None and abs(value) < 1 << 60:
                    self.usage[part] = (self.usage[part] or 0) + float(value)

    def _add(self, batch: Any) -> None:
        self.tally.add(batch.rejected, batch.chosen)
        _count(self.flags, pc.list_flatten(batch.columns["flags"]))
        _count(self.methods, batch.columns["method"])
        for part in USAGE:
            column = pc.struct_field(batch.columns["usage"], part).drop_null()
            # As float64, which neither wraps nor ends in infinity for any count or price there can be.
            column = column.cast(pa.float64(), safe=False)
            column = column.filter(pc.less(pc.abs(column), float(1 << 60)))
            if len(column):
                self.usage[part] = (self.usage[part] or 0) + pc.sum(column).as_py()

    def _result(self, name: str) -> dict[str, Any]:
        tally, skipped = self.tally, self.reader.skipped
        for counter, counted in ((self.flags, tally.flags), (self.methods, tally.methods)):
            counter.update(dict(counted))
        for part, value in zip(USAGE, tally.usage, strict=True):
            found = [v for v in (self.usage[part], value) if v is not None]
            if found:
                self.usage[part] = sum(found) if part == "cost_usd" else round(sum(found))
        measures: dict[str, Any] = {}
        histograms: dict[str, Any] = {}
        for measure, whole in MEASURES:
            # One at a time: each takes 8 MiB for a million pairs.
            values = tally.distribution(measure)
            measures[measure] = _figures(whole, values)
            histograms[measure] = _histogram(measure, whole, values)
        edits = sum(tally.edit_position)
        return {
            "file": name,
            "pairs": tally.pairs,
            "skipped": sum(s.rows for s in skipped.values()),
            "skipped_reasons": {
                reason: {"rows": s.rows, "first_row": s.first_row, "first": s.first}
                for reason, s in skipped.items()
            },
            **measures,
            "chosen_longer_share": tally.chosen_longer / tally.pairs if tally.pairs else None,
            "identical": tally.identical,
            "near_identical": tally.near_identical,
            "edit_position": [n / edits for n in tally.edit_position] if edits else None,
            "flags": dict(self.flags.most_common()),
            "methods": dict(self.methods.most_common()),
            **self.usage,
            "histograms": histograms,
        }


def _figures(whole: bool, values: Distribution) -> dict[str, Any] | None:
    if values.ends is None:
        return None
    low, high = map(int, values.ends) if whole else values.ends
    quantiles = {name: values.quantile(q) for name, q in QUANTILES.items()}
    return {"mean": values.mean, "std": values.std, "min": low, **quantiles, "max": high}


def _histogram(name: str, whole: bool, values: Distribution) -> dict[str, list[float]] | None:
    """Counts between edges, the upper one of each excluded but for the last."""
    last, most = values.quantile(0.99), values.quantile(1.0)
    if last is None or most is None:
        return None
    bound = {"length_ratio": 2.0}.get(name, 1.0)
    if whole:
        bound = _nice(last / BINS) * BINS
    edges = [bound * i / BINS for i in range(BINS)]
    edges.append(max(bound, most))
    ranks = [values.below(edge) for edge in edges[:-1]]
    ranks.append(values.below(math.nextafter(edges[-1], math.inf)))
    return {"edges": edges, "counts": [b - a for a, b in pairwise(ranks)]}


def _nice(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 … that is at least `width`."""
    if width <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def _count(counter: Counter[str], column: Any) -> None:
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
