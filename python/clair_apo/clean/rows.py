"""The rows of any table as they are, a batch at a time, and copies of some of them.

What the commands that choose rows stand on. Rows are numbered from 0 over all files of a spec, those that
cannot be read included, exactly as `shapes.PairReader` numbers them. Lines of JSON pass from file to file
as they stand: no number, no order of keys and no unknown key changes. Memory holds one batch and one row
group of the output, whatever the sizes of the files.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clair_apo import files
from clair_apo.clean.unify import unified
from clair_apo.errors import ClairError, UsageError
from clair_apo.files import BadRow, Row
from clair_apo.loose import LooseTypes, from_records
from clair_apo.shapes import Skipped
from clair_apo.tables import TableWriter, json_value
from clair_apo.terminal import one_line

# A batch is bounded in rows and in estimated bytes. Of it up to five are in memory: the one read ahead, the
# pages that it is cut from, the one at hand, the rows of it that stay, and these on their way to the file.
BATCH_ROWS = 4096
BATCH_BYTES = 2 << 20

Spec = str | os.PathLike[str]
# Told the spec, the rows read so far, and the rows in all (None where only reading would tell).
Progress = Callable[[str, int, int | None], None]


class RowBatch:
    """Consecutive rows: number `first_row` and those after it, all of them readable.

    `path` is their file; `batch` has them in the reader's schema; `lines` are
    the lines they stand in, without their ends, where the file is of JSON Lines.
    """

    __slots__ = ("_batch", "_reader", "_records", "first_row", "lines", "num_rows", "path")

    def __init__(
        self,
        reader: RowReader,
        path: Path,
        first_row: int,
        batch: pa.RecordBatch | None = None,
        records: list[Row] | None = None,
        lines: list[bytes] | None = None,
    ) -> None:
        self.path = path
        self.first_row = first_row
        self.lines = lines
        self._reader = reader
        self._batch = batch
        self._records = records or []
        self.num_rows: int = len(self._records) if batch is None else batch.num_rows

    @property
    def batch(self) -> pa.RecordBatch:
        """The rows as Arrow. Of JSON Lines and CSV they are made at the first call, which may read
        all files once to find the type of each column."""
        if self._batch is None:
            schema = self._reader.schema
            if not len(schema):
                raise ClairError(f"{one_line(str(self._reader.spec))}: the rows have no columns")
            structs = from_records(list(self._records), pa.struct(list(schema)))
            arrays = [structs.field(i) for i in range(structs.type.num_fields)]
            self._batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
            self._records = []
        return self._batch


@dataclass(slots=True)
class RowReader:
    """The rows of a file, a folder or a glob; iterate over it for `RowBatch`es. Each iteration reads the
    files anew, and fills `rows_read` and `unreadable` (None where every row could be read).

    Raises ClairError where a file is missing or unreadable, or where files have no schema in common: for
    Parquet at once, for text files when `schema` is first asked for.
    """

    spec: Spec
    columns: Sequence[str] | None = field(init=False, default=None)
    paths: list[Path] = field(init=False)
    rows_read: int = field(init=False, default=0)
    unreadable: Skipped | None = field(init=False, default=None)
    _schema: pa.Schema | None = field(init=False, default=None)
    _counted: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.paths = files.expand(self.spec)
        for path in self.paths:
            if not path.is_file():
                raise ClairError(
                    f"{one_line(str(path))}: is a pipe or a device, and the rows are read more than once; "
                    "write them to a file first"
                )
            names = [] if (schema := files.columns_of(path)) is None else schema.names
            if twice := next((n for n in names if names.count(n) > 1), None):
                where = one_line(str(path))
                raise ClairError(f"{where}: column {one_line(twice, 40)} stands there more than once")
        if all(files.suffix(path) == ".parquet" for path in self.paths):
            self._schema = self._unified()

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch: that of the files, or one that all of them fit into. The metadata
        is the first file's."""
        if self._schema is None:
            self._schema = self._unified()
        return self._schema

    @property
    def total_rows(self) -> int | None:
        """Rows in all files together; None where only reading would tell."""
        if self._counted is not None:
            return self._counted
        counts = [files.count_rows(path) for path in self.paths]
        known = [n for n in counts if n is not None]
        return sum(known) if len(known) == len(counts) else None

    def narrow(self, columns: Sequence[str]) -> None:
        """From now on, decodes only these columns."""
        whole, self.columns = self.schema, columns
        self._schema = pa.schema([f for f in whole if f.name in columns], whole.metadata)

    def __iter__(self) -> Iterator[RowBatch]:
        self.rows_read, self.unreadable = 0, None
        for path in self.paths:
            yield from self._parquet(path) if files.suffix(path) == ".parquet" else self._text_file(path)

    def _unified(self) -> pa.Schema:
        found: list[tuple[str, pa.Schema]] = []
        types = LooseTypes(set())
        loose: Path | None = None
        rows = 0
        first: str | None = None
        readable = False
        for path in self.paths:
            schema = files.columns_of(path)
            if schema is not None:
                found.append((one_line(str(path)), schema))
                rows += files.count_rows(path) or 0
                continue
            loose = loose or path
            types.see(dict.fromkeys(files.csv_header(path)))
            for item in files.read_rows(path):
                rows += 1
                if isinstance(item, dict):
                    types.see(item)
                    readable = True
                else:
                    first = first or item.reason
        if first is not None and not readable and not found:
            raise self.none_readable(rows, first)
        self._counted = rows
        return unified(found, (one_line(str(loose)), types.schema()) if loose is not None else None)

    def none_readable(self, rows: int, first: str) -> ClairError:
        return ClairError(
            f"{one_line(str(self.spec))}: none of its {rows:,} rows can be read; the first: "
            f"{one_line(first, 300)}"
        )

    def _bad(self, reason: str, path: Path) -> None:
        if self.unreadable is None:
            where = f"{path.name}: " if len(self.paths) > 1 else ""
            self.unreadable = Skipped(0, self.rows_read, one_line(where + reason, 300))
        self.unreadable.rows += 1
        self.rows_read += 1

    def _parquet(self, path: Path) -> Iterator[RowBatch]:
        schema = self.schema
        file = files.parquet_file(path)
        names = None if self.columns is None else [n for n in file.names if n in self.columns]
        for item in file.batches(names, BATCH_ROWS, BATCH_BYTES):
            if isinstance(item, tuple):
                for bad in files.bad_rows(item):
                    self._bad(bad.reason, path)
                continue
            for part in _readable(pa.record_batch(item)):
                if isinstance(part, BadRow):
                    self._bad(part.reason, path)
                    continue
                first = self.rows_read
                self.rows_read += part.num_rows
                yield RowBatch(self, path, first, _as(part, schema))

    def _text_file(self, path: Path) -> Iterator[RowBatch]:
        keeps_lines = files.suffix(path) != ".csv"
        records: list[Row] = []
        lines: list[bytes] = []
        size = 0

        def pending() -> Iterator[RowBatch]:
            nonlocal records, lines, size
            if records:
                first = self.rows_read - len(records)
                yield RowBatch(self, path, first, records=records, lines=lines if keeps_lines else None)
            records, lines, size = [], [], 0

        for row, line, length in _json_rows(path) if keeps_lines else _csv_rows(path):
            if isinstance(row, BadRow):
                yield from pending()
                self._bad(row.reason, path)
                continue
            self.rows_read += 1
            records.append(row)
            lines.append(line)
            size += length
            if len(records) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield from pending()
        yield from pending()


def _json_rows(path: Path) -> Iterator[tuple[Row | BadRow, bytes, int]]:
    """Rows with the lines they stand in, and the lengths of these."""
    for line in files.json_lines(path):
        if isinstance(line, BadRow):
            yield line, b"", 0
        else:
            yield files.json_row(line), line, len(line)


def _csv_rows(path: Path) -> Iterator[tuple[Row | BadRow, bytes, int]]:
    """The same of CSV, where a row has no line of its own."""
    for row in files.read_rows(path):
        if isinstance(row, dict):
            bad = next((name for name, cell in row.items() if files.utf8(cell) != cell), None)
            if bad is not None:
                row = BadRow(f"`{bad}` is not UTF-8", bad)
        yield row, b"", 0 if isinstance(row, BadRow) else sum(map(len, row.values()))


def _readable(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | BadRow]:
    """A batch as it is, or in parts where rows hold bytes that are no UTF-8."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        good = 0
        for index, row in enumerate(files.as_rows(batch)):
            if isinstance(row, BadRow):
                if good < index:
                    yield chosen(batch.slice(good, index - good), pa.repeat(True, index - good))
                yield row
                good = index + 1
        if good < batch.num_rows:
            rest = batch.num_rows - good
            yield chosen(batch.slice(good, rest), pa.repeat(True, rest))
        return
    yield batch


def _as(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch in the reader's schema: columns in its order, widened where files differ."""
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    columns = []
    for item in schema:
        if item.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, item.type))
            continue
        column = batch.column(item.name)
        columns.append(column if column.type == item.type else column.cast(item.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def chosen(batch: pa.RecordBatch, mask: pa.BooleanArray) -> pa.RecordBatch:
    """The rows of a batch where `mask` is true; a null leaves a row out."""
    try:
        return batch.filter(mask)
    except pa.ArrowNotImplementedError:  # Arrow's filter knows no view types, concat does
        kept = [batch.slice(i, 1) for i, stays in enumerate(mask.to_pylist()) if stays]
        return pa.concat_batches(kept) if kept else batch.slice(0, 0)


def check_paths(spec: Spec, output: Spec, *more: Spec) -> None:
    """Raises ClairError where `output` cannot be written, or is, or would become, part of the input;
    `more` are other files to be written."""
    inputs = files.expand(spec)
    written = [Path(output), *map(Path, more)]
    for path in written:
        files.check_output(path)
        shown = one_line(str(path))
        if any(path.exists() and path.samefile(source) for source in inputs):
            raise UsageError(f"{shown}: is also the input; name another file to write to")
        folder = Path(spec)
        if folder.is_dir() and path.parent.samefile(folder):
            raise UsageError(f"{shown}: lies in the folder that is read, and would be part of it next time")
        beside = not folder.exists() and path.parent.absolute() == folder.parent.absolute()
        if beside and fnmatch.fnmatch(path.name, folder.name):
            raise UsageError(f"{shown}: fits the pattern that is read, and would be part of it next time")
    names = [path.absolute() for path in written]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{one_line(str(twice))}: is named for two things to be written")


class RowWriter:
    """Writes rows of a reader to a file by its extension; a context manager. The file appears under its
    name only when the block ends without an error. `rows` counts what was written."""

    def __init__(self, path: Path, reader: RowReader) -> None:
        self.rows = 0
        self._reader = reader
        self._parquet = files.suffix(path) == ".parquet"
        self._writer = TableWriter(path, reader.schema) if self._parquet else JsonLinesWriter(path)

    def __enter__(self) -> RowWriter:
        self._writer.__enter__()
        return self

    def write(self, rows: RowBatch, mask: pa.BooleanArray | None = None) -> None:
        """Writes the rows where `mask` is true (all without one)."""
        if isinstance(self._writer, JsonLinesWriter) and rows.lines is not None:
            kept = [True] * rows.num_rows if mask is None else mask.to_pylist()
            lines = [line for line, stays in zip(rows.lines, kept, strict=True) if stays]
            self._writer.write_lines(lines)
            self.rows += len(lines)
            return
        batch = rows.batch if mask is None else chosen(rows.batch, mask)
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def finish(self) -> None:
        """Writes all of it beside its final name; of several files, before leaving the first.

        Raises ClairError where no row of the input could be read: that is no empty table."""
        bad = self._reader.unreadable
        if bad is not None and bad.rows == self._reader.rows_read:
            raise self._reader.none_readable(bad.rows, bad.first)
        self._writer.finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self.finish()
            except BaseException as failed:
                self._writer.__exit__(type(failed), failed, failed.__traceback__)
                raise
        self._writer.__exit__(kind, error, trace)


class JsonLinesWriter:
    """Lines of JSON into a file that appears whole or not at all, compressed by its extension."""

    def __init__(self, path: Path) -> None:
        self._replacing = files.replacing(path)
        self._compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())

    def __enter__(self) -> JsonLinesWriter:
        temporary = self._replacing.__enter__()
        raw = temporary.open("wb")
        self._raw = raw
        self._file: Any = raw
        if self._compression:
            self._file = pa.CompressedOutputStream(pa.PythonFile(raw, "w"), self._compression)
        return self

    def write_lines(self, lines: list[bytes]) -> None:
        """Appends lines, given without their ends."""
        if lines:
            self._file.write(b"\n".join(lines) + b"\n")

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Appends rows, each as a JSON object with the columns in their order."""
        columns = [_told(column) for column in batch.columns]
        rows = pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()
        self.write_lines([json_line(row) for row in rows])

    def finish(self) -> None:
        """Writes all of it beside its final name."""
        self._file.close()
        self._raw.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.finish()
        except BaseException as failed:
            self._replacing.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._replacing.__exit__(kind, error, trace)


def _told(column: pa.Array) -> pa.Array:
    """A column with times in nanoseconds, which Python's own cannot hold, as text."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pc.replace_substring(column.cast(pa.string()), " ", "T", max_replacements=1)
    if pa.types.is_struct(kind) and kind.num_fields:
        names = [kind.field(i).name for i in range(kind.num_fields)]
        parts = [_told(part) for part in column.flatten()]
        return pa.StructArray.from_arrays(parts, names, mask=column.is_null())
    return column


def json_line(row: Row) -> bytes:
    """A row as a line of JSON. What JSON has no number for (NaN, infinities) becomes null."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=json_value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, default=json_value)
    return files.utf8(text).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of the rows: `rows_in` = `rows_out` + `left_out` + those of `unreadable`."""

    rows_in: int
    rows_out: int
    unreadable: Skipped | None

    @property
    def left_out(self) -> int:
        """Rows that could be read and do not stay."""
        return self.rows_in - self.rows_out - (self.unreadable.rows if self.unreadable else 0)


def copy_rows(
    spec: Spec,
    output: Spec,
    stays: Callable[[int, int], pa.BooleanArray],
    on_progress: Progress | None = None,
) -> Copied:
    """Copies the rows of `spec` that stay into the file `output`, in their order and with all columns.

    `stays(first_row, count)` says for `count` consecutive rows, the first of them number `first_row`,
    which stay; null is no. It is called in the order of the rows, and not for rows that cannot be read.
    Raises ClairError where the input cannot be read or the output cannot be written.
    """
    check_paths(spec, output)
    reader = RowReader(spec)
    with RowWriter(Path(output), reader) as writer:
        for rows in reader:
            writer.write(rows, stays(rows.first_row, rows.num_rows))
            if on_progress is not None:
                on_progress(str(spec), reader.rows_read, reader.total_rows)
    return Copied(reader.rows_read, writer.rows, reader.unreadable)
