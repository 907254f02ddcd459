"""`clair-apo dedup`: rows whose text is that of another row, or near it, left out.

Two texts are *equal* if they are so once every character is lower-cased and each run of white space is one
space, none at either end. They are *near* if the Jaccard similarity of their sets of shingles (runs of
`shingle` words, lower-cased; a text of fewer words is one shingle) is at least the threshold. Rows are
visited in the order of the keep rule, and a row goes if it is equal to, or near, one that stays: never
through a third one that goes itself.

Candidates come from MinHash in bands (`bands` in the summary), which find a pair at the threshold with the
probability `recall`, at least 0.99, and nearer pairs with a higher one. Each candidate is verified on the
sets themselves, so no row goes that is not near. Where more than some four thousand different texts
resemble each other, a text is compared with at most 256 others, first of all with those that share
shingles that few texts have; rows that stay although not all their candidates were looked at are counted
as `undecided`.

A text of nothing but white space is none. With `on="prompt"` and `keep="first"` only prompts are read, so
rows whose answers are broken are compared too; of a table with a row for each answer (prompt,
completion, label) one row of each prompt stays, whatever its label.

Memory: about 50 bytes a row with `keep="first"`, 80 with the others, some 10 more for each band that a
text shares with another, and beyond that `MEMORY`, and a third of it where thousands of
texts are alike. Hashes of shingles, and texts where they decide the order, are put aside in a temporary
file without a name (folder `TMPDIR`), of some 1.3 times the size of what is compared (2.3 times where texts
are) plus 250 bytes a row.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from clair_apo import _core, files
from clair_apo.clean.prompts import Prompts
from clair_apo.clean.rows import (
    Copied,
    Progress,
    RowReader,
    Spec,
    check_paths,
    copy_rows,
)
from clair_apo.clean.summary import reasons
from clair_apo.errors import ClairError, UsageError
from clair_apo.shape_rows import layout_of
from clair_apo.shapes import PairReader, Skipped, read_pairs
from clair_apo.tables import TableWriter
from clair_apo.terminal import one_line

On = Literal["prompt", "pair", "chosen", "rejected"]
Keep = Literal["first", "most-contrastive", "shortest"]
ON: tuple[On, ...] = ("prompt", "pair", "chosen", "rejected")
KEEP: tuple[Keep, ...] = ("first", "most-contrastive", "shortest")
LOWEST_THRESHOLD = 0.1

# Bytes for texts, bands and sets before they go to a file.
MEMORY = 64 << 20
# Rows of a text file that are looked at to see what it holds.
ROWS_TO_RECOGNISE = 1000
# Rows of the clusters' table that are made at once.
CLUSTER_ROWS = 1 << 18

CLUSTERS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("kept_row", pa.int64(), nullable=False),
        pa.field("kept_id", pa.string()),
        pa.field("jaccard", pa.float64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def dedup(
    file: Spec,
    output: Spec,
    *,
    on: On = "prompt",
    threshold: float = 0.8,
    shingle: int = 5,
    exact: bool = False,
    keep: Keep = "first",
    clusters: Spec | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Copies `file` to `output` without rows whose text is equal to, or near, that of a row that stays.

    `on` says which text: the prompt, the chosen or the rejected answer, or the whole pair (prompt and both
    answers). With `exact` only equal texts go. `keep` says which row of several stays: the first one, the
    one with the lowest `levenshtein_ratio` between its answers (identical answers, which show no
    preference, come last), or the one with the shortest text in characters; ties are broken by the text
    (in the order of code points), then by the rest of the pair, then by the row. So the rows that stay
    do not hang on the order of the input, except with `first`. Rows without such a text stay. `clusters`
    names a table to write (.parquet, .jsonl) with `row, id, kept_row, kept_id, jaccard, reason` for
    each row that went; rows are counted from 0.

    Returns: what `clair-apo dedup --json` prints: `rows_in` = `rows_out` + `exact` + `near` + `unreadable`;
    `groups` (rows that stay and because of which others went), `without_text` (rows that stay
    unseen; `skipped_reasons` says why), `undecided`, `comparisons` (pairs whose sets were compared),
    `bands`, `band_rows`, `recall` (None where some are undecided, for which it does not hold), and the
    settings.

    Raises: ClairError where a file cannot be read or written, or holds no such text; UsageError for an
    impossible setting.
    """
    _check(on, threshold, shingle, keep, seed)
    check_paths(file, output, *([clusters] if clusters is not None else []))
    source = _source(file, on, keep)
    rule = {"most-contrastive": "lowest"}.get(keep, keep)
    with _temporary_files():
        core = _core.Dedup(None if exact else threshold, shingle, rule, seed, MEMORY)
        texts = 0
        for part in source:
            core.add(part.rows, part.texts, part.keys, part.rest)
            texts += len(part.texts) - part.texts.null_count
            if on_progress is not None:
                on_progress(str(file), source.rows_read, source.total_rows)
        if source.rows_read and not texts:
            raise _no_texts(file, on, source)
        found = core.finish(source.rows_read)
    counts = dict(found.counts())
    with contextlib.ExitStack() as stack:
        if clusters is not None:
            writer = stack.enter_context(TableWriter(Path(clusters), CLUSTERS))
            _write_clusters(writer, file, found, counts["rows_in"])
        copied = _copy(file, output, found, on_progress)
    unreadable = copied.unreadable.rows if copied.unreadable else 0
    bands = core.bands or (None, None, None)
    return {
        "file": str(file),
        "output": str(output),
        "clusters": None if clusters is None else str(clusters),
        "rows_in": copied.rows_in,
        "rows_out": copied.rows_out,
        "exact": counts["exact"],
        "near": counts["near"],
        "unreadable": unreadable,
        "without_text": counts["without_text"] - unreadable,
        "skipped_reasons": reasons(source.skipped),
        "groups": counts["groups"],
        "undecided": counts["undecided"],
        "comparisons": counts["comparisons"],
        "on": on,
        "keep": keep,
        "threshold": None if exact else threshold,
        "shingle": shingle,
        "seed": seed,
        "bands": bands[0],
        "band_rows": bands[1],
        "recall": None if counts["undecided"] else bands[2],
    }


def _check(on: str, threshold: float, shingle: int, keep: str, seed: int) -> None:
    if on not in ON:
        raise UsageError(f"on {on!r}: known are {', '.join(ON)}")
    if keep not in KEEP:
        raise UsageError(f"keep {keep!r}: known are {', '.join(KEEP)}")
    if not LOWEST_THRESHOLD <= threshold <= 1:
        raise UsageError(f"threshold {threshold}: a Jaccard similarity from {LOWEST_THRESHOLD} to 1")
    if not 1 <= shingle <= 1000:
        raise UsageError(f"shingle {shingle}: from 1 to 1000 words")
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed {seed}: from 0 to 2**64 - 1")


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows: their numbers (uint32), the texts to compare (null where there is none), the keep
    rule's numbers (float64, the lowest stays) if it has any, and the other texts of the rows."""

    rows: Any
    texts: Any
    keys: Any
    rest: list[Any]


class _Pairs:
    """The texts of a file of pairs."""

    def __init__(self, file: Spec, on: On, keep: Keep) -> None:
        self._on, self._keep = on, keep
        self._prompts = on in ("prompt", "pair") or keep != "first"
        self._reader: PairReader = read_pairs(file, ("prompt",) if self._prompts else ())

    @property
    def rows_read(self) -> int:
        return self._reader.rows_read

    @property
    def total_rows(self) -> int | None:
        return self._reader.total_rows

    @property
    def skipped(self) -> dict[str, Skipped]:
        return self._reader.skipped

    def __iter__(self) -> Iterator[_Part]:
        for batch in self._reader:
            prompts = [batch.columns["prompt"]] if self._prompts else []
            if self._on == "pair":
                parts = [c.cast(pa.large_string()) for c in (*prompts, batch.chosen, batch.rejected)]
                texts = pc.binary_join_element_wise(
                    *parts, pa.scalar("\n\n", pa.large_string()), null_handling="skip"
                )
            else:
                texts = prompts[0] if self._on == "prompt" else getattr(batch, self._on)
            keys = None
            if self._keep == "most-contrastive":
                ratio = pa.array(_core.levenshtein_ratio(batch.rejected, batch.chosen))
                keys = pc.if_else(pc.equal(batch.rejected, batch.chosen), 2.0, ratio)
            rest = [] if self._keep == "first" else [*prompts, batch.chosen, batch.rejected]
            yield _Part(batch.row.cast(pa.uint32()), texts, keys, rest)


class _Prompts:
    """The prompts of a table, whether its answers can be read or not."""

    def __init__(self, file: Spec) -> None:
        self._reader = RowReader(file)
        own = self._reader.schema.names
        # Without pairs the prompts are where those of pairs would be.
        names = own if layout_of(own) is not None else [*own, "chosen", "rejected"]
        layout = layout_of(names)
        source = None if layout is None else layout.sources["prompt"]
        if layout is None or (source is None and names is not own):
            shown = ", ".join(one_line(n, 40) for n in own[:20])
            raise ClairError(
                f"{one_line(str(file))}: holds neither preference pairs nor prompts. "
                f"Its columns are: {shown or 'none'}."
            )
        self._prompts = Prompts(one_line(str(file)), names)
        parquet = all(files.suffix(path) == ".parquet" for path in self._reader.paths)
        # Text in a Parquet file is taken as it is; elsewhere it may be messages as JSON.
        self._text = source if parquet else None
        self._reader.narrow(self._prompts.columns)
        self.skipped: dict[str, Skipped] = {}

    @property
    def rows_read(self) -> int:
        return self._reader.rows_read

    @property
    def total_rows(self) -> int | None:
        return self._reader.total_rows

    def __iter__(self) -> Iterator[_Part]:
        for rows in self._reader:
            texts = None if self._text is None else rows.batch.column(self._text)
            if texts is None or not (
                pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)
            ):
                texts = pa.array(self._prompts.of(rows), pa.large_string())
            numbers = range(rows.first_row, rows.first_row + rows.num_rows)
            yield _Part(pa.array(numbers, pa.uint32()), texts, None, [])
        if self._reader.unreadable:
            self.skipped = {"unreadable": self._reader.unreadable}


def _source(file: Spec, on: On, keep: Keep) -> _Pairs | _Prompts:
    """With `keep="first"` no answer decides anything, so none is read."""
    if on == "prompt" and (
        keep == "first" or (keep == "shortest" and not any(map(_holds_pairs, files.expand(file))))
    ):
        return _Prompts(file)
    return _Pairs(file, on, keep)


def _holds_pairs(path: Path) -> bool:
    """Whether a file's columns, or those of one of its first rows, are those of pairs."""
    schema = files.columns_of(path)
    if schema is not None:
        return layout_of(schema.names) is not None
    first = itertools.islice(files.read_rows(path), ROWS_TO_RECOGNISE)
    return any(layout_of(tuple(row)) is not None for row in first if isinstance(row, dict))


def _no_texts(file: Spec, on: On, source: _Pairs | _Prompts) -> ClairError:
    where = one_line(str(file))
    if source.skipped:
        reason, first = next(iter(source.skipped.items()))
        return ClairError(
            f"{where}: no row holds a text to compare; first ({reason}): "
            f"row {first.first_row}, {first.first}"
        )
    hint = " `--on pair`, `chosen` or `rejected` compare the answers." if isinstance(source, _Pairs) else ""
    return ClairError(f"{where}: no row has a {on}.{hint}")


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """Says of errors of the core's temporary files where they lie."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | bytes | os.PathLike):
            raise
        raise ClairError(
            f"{one_line(tempfile.gettempdir())}: {error.strerror or error}. Texts are put aside there "
            "while duplicates are looked for; TMPDIR names another folder."
        ) from error


def _copy(file: Spec, output: Spec, found: _core.Outcome, on_progress: Progress | None) -> Copied:
    def stays(first_row: int, count: int) -> pa.BooleanArray:
        return pa.array(found.stays(first_row, count))

    def writing(_: str, rows: int, total: int | None) -> None:
        if on_progress is not None:
            on_progress(str(output), rows, total)

    return copy_rows(file, output, stays, writing)


def _write_clusters(writer: TableWriter, file: Spec, found: _core.Outcome, rows: int) -> None:
    """One row for each that goes, in the order of the input."""
    numbers, ids = _ids(file, found)

    def ids_of(wanted: Any) -> Any:
        return ids.take(pc.index_in(wanted, value_set=numbers)).cast(pa.string())

    for first in range(0, rows, CLUSTER_ROWS):
        gone = pa.record_batch(found.gone(first, min(CLUSTER_ROWS, rows - first)))
        if gone.num_rows:
            row, kept = gone["row"], gone["kept_row"]
            columns = [row, ids_of(row), kept, ids_of(kept), gone["jaccard"], gone["reason"]]
            cast = [c.cast(field.type) for c, field in zip(columns, CLUSTERS, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(cast, schema=CLUSTERS))


def _ids(file: Spec, found: _core.Outcome) -> tuple[Any, Any]:
    """The numbers and ids of the rows that the clusters name; nothing where the file has no ids."""
    reader = RowReader(file)
    name = next((n for n in ("id", "prompt_id") if n in reader.schema.names), None)
    numbers: list[Any] = [pa.array([], pa.uint32())]
    ids: list[Any] = [pa.array([], pa.large_string())]
    if name is not None:
        reader.narrow([name])
        for rows in reader:
            wanted = pa.array(found.involved(rows.first_row, rows.num_rows))
            all_rows = pa.array(range(rows.first_row, rows.first_row + rows.num_rows), pa.uint32())
            numbers.append(all_rows.filter(wanted))
            ids.append(_as_text(rows.batch.column(name)).filter(wanted))
    return pa.concat_arrays(numbers), pa.concat_arrays(ids)


def _as_text(column: Any) -> Any:
    """Ids as text: numbers as their digits, anything but numbers and text as null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    if any(kind(column.type) for kind in kinds):
        return column.cast(pa.large_string())
    return pa.nulls(len(column), pa.large_string())
