"""Preference pairs out of files of every shape, as a stream of Arrow batches.

Read are: this package's pair table; plain text columns; message lists, also with the conversation
repeated in both answers (`ultrafeedback_binarized`) or with a text prompt beside them
(`clair_32k`); UltraFeedback's rated `completions` (best against worst); OpenAI's `preferred_output`
and `non_preferred_output`; transcripts with `Human:` and `Assistant:` turns; CSV cells that hold
message lists as JSON. What counts as the answer is the last assistant message of each side.

Rows that hold no pair are left out and counted by reason, so rows = pairs + skipped. An empty text
is an answer like any other (and so is an empty CSV cell); a null is not.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_apo.errors import ClairError
from clair_apo.files import (
    BadRow,
    Row,
    bad_rows,
    columns_of,
    count_rows,
    expand,
    names_of,
    parquet_file,
    read_batches,
    read_rows,
    suffix,
)
from clair_apo.lazy import Lazy
from clair_apo.shape_rows import (
    HUMAN,
    OPTIONAL,
    RESPONSES,
    SCORES,
    SKIP_REASONS,
    Layout,
    Unreadable,
    answers_of,
    layout_of,
    optional_value,
)
from clair_apo.terminal import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

    from clair_apo._core import ParquetPairs, Tally
else:
    pa, pc = Lazy("pyarrow"), Lazy("pyarrow.compute")

__all__ = [
    "OPTIONAL",
    "SKIP_REASONS",
    "Pair",
    "PairBatch",
    "PairReader",
    "Skipped",
    "pair_at",
    "pair_with_id",
    "read_pairs",
]

# A batch is bounded in rows and in bytes, whichever comes first.
BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20
# Rows of a text file without any pair column before the file is given up.
ROWS_TO_RECOGNISE = 1000


def optional_type(name: str) -> pa.DataType:
    """The type of an optional column."""
    from clair_apo.tables import USAGE

    return {"flags": pa.list_(pa.string()), "usage": USAGE}.get(name, pa.string())


@dataclass(slots=True)
class Skipped:
    """Rows left out for one reason: how many, the first one's number, and what it said."""

    rows: int
    first_row: int
    first: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair. `row` counts from 0 over all files of the spec; `columns` are the optional ones."""

    row: int
    rejected: str
    chosen: str
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs in the order of their rows. `row` is int64; `rejected` and `chosen` are string or
    large_string, without nulls and of valid UTF-8; `columns` has each optional column that was
    asked for, null where the file does not say."""

    row: Any
    rejected: Any
    chosen: Any
    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(self.row)

    def pair(self, i: int) -> Pair:
        """The pair at position `i` of the batch, as Python values."""
        return Pair(
            self.row[i].as_py(),
            self.rejected[i].as_py(),
            self.chosen[i].as_py(),
            {name: column[i].as_py() for name, column in self.columns.items()},
        )


def skip_reason(bad: BadRow) -> str:
    """Which of SKIP_REASONS a row that cannot be read is left out for."""
    return "unreadable" if bad.column is None or "UTF-8" not in bad.reason else "not_unicode"


def _no_pairs(path: Path, names: Sequence[str]) -> ClairError:
    shown = ", ".join(one_line(n, 40) for n in names[:20]) + (", …" if len(names) > 20 else "")
    return ClairError(
        f"{one_line(str(path))}: holds no preference pairs. Its columns are: {shown or 'none'}. "
        "Needed are `chosen` and `rejected` (text or lists of messages), or `completions` (a list "
        "of answers with `response` and `overall_score` or `rating`)."
    )


def read_pairs(
    spec: str | os.PathLike[str],
    columns: Sequence[str] = (),
    on_skip: Callable[[int, str, str], None] | None = None,
) -> PairReader:
    """The pairs of a file, a folder or a glob; iterate over the reader for its batches.

    `columns` names optional columns (keys of `OPTIONAL`) to decode too; `on_skip(row, reason,
    detail)` hears of each row left out. Memory holds one batch, whatever the size of the file.
    Raises ClairError where a file is missing or unreadable, or holds no pair columns; for Parquet
    at once, for text files when their rows have been seen.
    """
    return PairReader(spec, columns, on_skip)


@dataclass(slots=True)
class PairReader:
    """A spec's pairs. Each iteration reads the files anew, and fills `skipped` and `rows_read`."""

    spec: str | os.PathLike[str]
    columns: Sequence[str] = ()
    on_skip: Callable[[int, str, str], None] | None = None
    paths: list[Path] = field(init=False)
    skipped: dict[str, Skipped] = field(init=False, default_factory=dict)
    rows_read: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        unknown = [c for c in self.columns if c not in OPTIONAL]
        if unknown:
            raise ValueError(f"no such optional column: {', '.join(unknown)}")
        self.paths = expand(self.spec)
        for path in self.paths:
            names = names_of(path)
            if names is None:
                continue
            layout = layout_of(names)
            if layout is None:
                raise _no_pairs(path, names)
            for name in (layout.chosen, layout.rejected, *layout.sources.values()):
                if name and names.count(name) > 1:
                    where = one_line(str(path))
                    raise ClairError(f"{where}: column {one_line(name, 40)} stands there more than once")

    @property
    def total_rows(self) -> int | None:
        """Rows in all files together; None where only reading would tell."""
        counts = [count_rows(path) for path in self.paths]
        known = [n for n in counts if n is not None]
        return sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[PairBatch]:
        self.restart()
        for path in self.paths:
            yield from self.batches(path)

    def restart(self) -> None:
        """Forgets what was read."""
        self.skipped.clear()
        self.rows_read = 0

    def batches(self, path: Path) -> Iterator[PairBatch]:
        """The pairs of one of `paths`."""
        if suffix(path) == ".parquet":
            yield from (batch for batch in self._parquet(path) if len(batch))
        else:
            yield from (pending.batch() for pending in self.text_rows(path) if pending.rows)

    def tallied(self, path: Path, tally: Tally) -> Iterator[PairBatch | None] | None:
        """Adds the pairs of one of `paths` to `tally` as they are decoded, which takes no Python objects;
        `columns` can then be `flags`, `method` and `usage`. Gives a None now and then, and the pairs that
        take a closer look, which are not added. None where all do."""
        if suffix(path) != ".parquet":
            return None
        file = parquet_file(path)
        layout = layout_of(file.names)
        if layout is None or layout.rejected is None:
            return None
        pairs = file.pairs(
            layout.chosen,
            layout.rejected,
            transcript=layout.transcript,
            flags=layout.sources["flags"],
            method=layout.sources["method"],
            usage=layout.sources["usage"],
        )
        return None if pairs is None else self._steps(path, layout, pairs, tally)

    def _steps(
        self, path: Path, layout: Layout, pairs: ParquetPairs, tally: Tally
    ) -> Iterator[PairBatch | None]:
        while (step := pairs.step(tally)) is not None:
            start = self.rows_read
            self.rows_read += step[0]
            for at, item in step[1]:
                if not isinstance(item, tuple):
                    batch = self._arrow_batch(pa.record_batch(item), layout, start + at, path)
                    if len(batch):
                        yield batch
                    continue
                for row, bad in enumerate(bad_rows(item), start + at):
                    self._skip(row, skip_reason(bad), bad.reason, path)
            yield None

    def _skip(self, row: int, reason: str, detail: str, path: Path) -> None:
        seen = self.skipped.get(reason)
        if seen is not None:
            seen.rows += 1
        else:
            where = f"{path.name}: " if len(self.paths) > 1 else ""
            self.skipped[reason] = Skipped(1, row, one_line(where + detail, 300))
        if self.on_skip is not None:
            self.on_skip(row, reason, detail)

    # Parquet: over Arrow columns, row by row only where a column or a row is out of the ordinary.

    def _parquet(self, path: Path) -> Iterator[PairBatch]:
        schema = columns_of(path)
        assert schema is not None
        layout = _layout(schema)
        assert layout is not None
        for item in read_batches(path, _projection(path, layout, self.columns), BATCH_ROWS):
            start = self.rows_read
            if isinstance(item, BadRow):
                self.rows_read += 1
                self._skip(start, skip_reason(item), item.reason, path)
            else:
                self.rows_read += item.num_rows
                yield self._arrow_batch(item, layout, start, path)

    def of_batch(self, batch: Any, start: int, path: Path) -> PairBatch:
        """The pairs among rows that were read from one of `paths` already, the first of them number
        `start`: a record batch with all columns of the file. `skipped` hears of the others."""
        layout = _layout(batch.schema)
        assert layout is not None
        return self._arrow_batch(batch, layout, start, path)

    def _arrow_batch(self, batch: Any, layout: Layout, start: int, path: Path) -> PairBatch:
        chosen = rejected = None
        if layout.rejected is not None and not layout.json_cells:
            chosen = _texts(batch.column(layout.chosen), layout.transcript)
            rejected = _texts(batch.column(layout.rejected), layout.transcript)
        if chosen is None or rejected is None:
            chosen = rejected = pa.nulls(batch.num_rows, pa.large_string())
        ok = pc.and_(pc.is_valid(chosen), pc.is_valid(rejected))
        columns = {name: _optional_column(name, batch, layout) for name in self.columns}
        slow = pc.indices_nonzero(pc.invert(ok)).to_pylist()
        if slow:
            patches: dict[int, tuple[str, str]] = {}
            # Not by take: it knows no view types.
            rows = (_pylist(batch.slice(i, 1))[0] for i in slow)
            for i, row in zip(slow, rows, strict=True):
                try:
                    patches[i] = answers_of(row, layout)
                except Unreadable as error:
                    self._skip(start + i, error.reason, str(error), path)
            mask = pc.not_equal(_integers(i in patches for i in range(batch.num_rows)), 0)
            chosen = _patched(chosen, mask, [c for c, _ in patches.values()])
            rejected = _patched(rejected, mask, [r for _, r in patches.values()])
            ok = pc.or_(ok, mask)
        numbers = _integers(range(start, start + batch.num_rows))
        if not slow:
            return PairBatch(numbers, rejected, chosen, columns)
        kept = {name: column.filter(ok) for name, column in columns.items()}
        return PairBatch(numbers.filter(ok), rejected.filter(ok), chosen.filter(ok), kept)

    # JSON Lines and CSV: row by row.

    def text_rows(self, path: Path) -> Iterator[Pending]:
        """The pairs of one of `paths` that is no Parquet file, as they come: Python objects, no pyarrow."""
        layouts: dict[tuple[str, ...], Layout | None] = {}
        pending = Pending(self.columns)
        recognised, without = False, 0
        first_names: list[str] = []
        for item in read_rows(path):
            row_number = self.rows_read
            self.rows_read += 1
            if isinstance(item, BadRow):
                self._skip(row_number, "unreadable", item.reason, path)
                continue
            names = tuple(item)
            if names not in layouts:
                if len(layouts) > 1000:  # keys that are data: a cache of them would only grow
                    layouts.clear()
                layouts[names] = layout_of(names, json_cells=suffix(path) == ".csv")
            layout = layouts[names]
            if layout is None:
                first_names = first_names or list(names)
                without += 1
                if not recognised and without >= ROWS_TO_RECOGNISE:
                    raise _no_pairs(path, first_names)
                detail = f"has the columns {', '.join(names[:20]) or 'none'}"
                self._skip(row_number, "missing_column", detail, path)
                continue
            recognised = True
            try:
                chosen, rejected = answers_of(item, layout)
            except Unreadable as error:
                self._skip(row_number, error.reason, str(error), path)
                continue
            pending.add(row_number, chosen, rejected, item, layout)
            if pending.full:
                yield pending
                pending = Pending(self.columns)
        if without and not recognised:
            raise _no_pairs(path, first_names)
        yield pending


def pair_at(spec: str | os.PathLike[str], row: int, columns: Sequence[str] = ()) -> Pair:
    """The pair in row `row` (from 0). Raises ClairError where there is no such row or pair."""
    why: list[str] = []

    def on_skip(number: int, reason: str, detail: str) -> None:
        if number == row:
            why.append(f"{SKIP_REASONS[reason]} ({one_line(detail)})")

    reader = read_pairs(spec, columns, on_skip)
    for batch in reader:
        if batch.row[-1].as_py() >= row:
            position = pc.index(batch.row, pa.scalar(row, pa.int64())).as_py()
            if position >= 0:
                return batch.pair(position)
            break
    if why:
        raise ClairError(f"{one_line(str(spec))}: row {row} holds no pair: {why[0]}")
    count = reader.rows_read
    numbered = f", numbered 0 to {count - 1}" if count else ""
    raise ClairError(f"{one_line(str(spec))}: no row {row}; the file has {count:,} rows{numbered}")


def pair_with_id(spec: str | os.PathLike[str], wanted: str, columns: Sequence[str] = ()) -> Pair:
    """The first pair whose `id` is `wanted`. Raises ClairError where none is."""
    example = None
    for batch in read_pairs(spec, list(dict.fromkeys([*columns, "id"]))):
        position = pc.index(batch.columns["id"], pa.scalar(wanted, pa.string())).as_py()
        if position >= 0:
            return batch.pair(position)
        example = example or batch.columns["id"][0].as_py()
    hint = (
        f"ids look like {one_line(example, 60)}"
        if example
        else "the file has no ids; use --row, which counts from 0"
    )
    raise ClairError(f"{one_line(str(spec))}: no pair has the id {one_line(wanted, 60)}; {hint}")


class Pending:
    """Pairs of a text file, before they become a batch; `columns` holds each optional one's values."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.rows: list[int] = []
        self.chosen: list[str] = []
        self.rejected: list[str] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in wanted}
        self.chars = 0

    def add(self, row: int, chosen: str, rejected: str, source: Row, layout: Layout) -> None:
        self.rows.append(row)
        self.chosen.append(chosen)
        self.rejected.append(rejected)
        self.chars += len(chosen) + len(rejected)
        for name, values in self.columns.items():
            values.append(optional_value(name, source, layout))

    @property
    def full(self) -> bool:
        return len(self.rows) >= BATCH_ROWS or self.chars >= BATCH_BYTES

    def batch(self) -> PairBatch:
        columns = {name: pa.array(values, optional_type(name)) for name, values in self.columns.items()}
        return PairBatch(
            _integers(self.rows),
            _strings(self.rejected),
            _strings(self.chosen),
            columns,
        )


def _layout(schema: pa.Schema) -> Layout | None:
    """Where the pairs of a table stand; None where it holds none."""
    layout = layout_of(schema.names)
    if layout is None:
        return None
    sides = [layout.chosen, *([layout.rejected] if layout.rejected else [])]
    if any(getattr(schema.field(s).type, "extension_name", "") == "arrow.json" for s in sides):
        return Layout(layout.chosen, layout.rejected, layout.sources, json_cells=True)
    return layout


def _projection(path: Path, layout: Layout, wanted: Sequence[str]) -> list[str]:
    """The leaves of a Parquet file to decode."""
    needed = layout.needed(wanted)
    parts = {*RESPONSES, *SCORES, "model"}
    leaves: list[str] = []
    annotations: list[str] = []
    for leaf in parquet_file(path).leaves:
        segments = leaf.split(".")
        if segments[0] in needed:
            # Of UltraFeedback's name.list.element.part most parts are not needed, and the largest.
            rated = layout.rejected is None and segments[0] == layout.chosen and len(segments) > 3
            (annotations if rated and segments[3] not in parts else leaves).append(leaf)
    return leaves if any(leaf.startswith(layout.chosen) for leaf in leaves) else leaves + annotations


def _texts(column: Any, transcript: bool) -> Any | None:
    """The answers of a column as text, null where a row needs a closer look; None where all do."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if _is_text(column.type):
            if column.type not in (pa.string(), pa.large_string()):
                column = column.cast(pa.large_string())
            column.validate(full=True)
            if transcript:
                whole = pc.starts_with(column, HUMAN)
                if pc.any(whole).as_py():
                    column = pc.if_else(whole, pa.scalar(None, column.type), column)
            return column
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            return None
        item = column.type.value_type
        if not pa.types.is_struct(item):
            return None
        kinds = {item.field(i).name: item.field(i).type for i in range(item.num_fields)}
        text = (pa.string(), pa.large_string())
        if kinds.get("role") not in text or kinds.get("content") not in text:
            return None
        ends = column.offsets
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        last = pc.if_else(pc.greater(lengths, 0), pc.subtract(ends.slice(1), 1), pa.scalar(None, ends.type))
        answer = column.values.take(last)
        spoken = pc.equal(pc.struct_field(answer, "role"), "assistant")
        content = pc.struct_field(answer, "content")
        content.validate(full=True)
        return pc.if_else(pc.fill_null(spoken, False), content, pa.scalar(None, content.type))
    except pa.ArrowInvalid:  # bytes that are no UTF-8: each row is looked at by itself
        return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _patched(column: Any, mask: Any, texts: list[str]) -> Any:
    return pc.replace_with_mask(column, mask, _strings(texts).cast(column.type))


# Not by `pa.array`, which imports pandas where it is installed: 45 MiB.


def _integers(values: Iterable[int]) -> Any:
    whole = array("q", values)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])


def _strings(texts: Sequence[str]) -> Any:
    encoded = [text.encode() for text in texts]
    ends = pa.py_buffer(array("q", accumulate(map(len, encoded), initial=0)))
    return pa.LargeStringArray.from_buffers(len(encoded), ends, pa.py_buffer(b"".join(encoded)))


def _pylist(batch: Any) -> list[Row]:
    """Rows as dicts; what is no UTF-8 becomes bytes, where Arrow's own way would end the file."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        return [
            {name: _value(batch.column(name)[i]) for name in batch.schema.names}
            for i in range(batch.num_rows)
        ]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"


def _optional_column(name: str, batch: Any, layout: Layout) -> Any:
    """One optional column of a Parquet batch; by Arrow alone where its type is the expected one."""
    kind, source = optional_type(name), layout.sources[name]
    column = None if source is None else batch.column(source)
    elsewhere = name == "prompt" or (name.endswith("_model") and layout.rejected is None)
    if column is None and not elsewhere:
        return pa.nulls(batch.num_rows, kind)
    if column is not None:
        try:
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            simple = _is_text(column.type) or pa.types.is_integer(column.type)
            if (kind == pa.string() and simple) or name == "flags":
                column = column.cast(kind)
                column.validate(full=True)
                return column
            if name == "usage" and pa.types.is_struct(column.type):
                return _usage_column(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    rows = _pylist(batch.select([source or layout.chosen]))
    values = [optional_value(name, row, layout) for row in rows]
    return pa.array(values, kind)


def _usage_column(column: Any) -> Any:
    from clair_apo.tables import USAGE

    names = {column.type.field(i).name for i in range(column.type.num_fields)}
    fields = [
        pc.struct_field(column, part.name).cast(part.type)
        if part.name in names
        else pa.nulls(len(column), part.type)
        for part in USAGE
    ]
    return pa.StructArray.from_arrays(fields, fields=list(USAGE), mask=column.is_null())
