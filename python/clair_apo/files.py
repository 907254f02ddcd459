"""Files by extension: which files a word on the command line means, and reading and writing them.

Reading never loses a good row to a bad one: what cannot be read comes out in its place, as a `BadRow`
that says why. Writing goes beside the final name and is moved into place when it is whole.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import os
import secrets
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clair_apo._core import ParquetFile
from clair_apo.errors import ClairError, UsageError
from clair_apo.lazy import Lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = Lazy("pyarrow")

INPUT_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv")
OUTPUT_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
# A line longer than this is not read into memory: it is one bad row.
MAX_LINE_BYTES = 64 * 1024 * 1024
# Rows decoded at a time. Small enough that a batch of long answers stays in the tens of megabytes.
BATCH_ROWS = 256
BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a file that cannot be read. `column` is None where the whole row is the trouble."""

    reason: str
    column: str | None = None


Row = dict[str, Any]


def suffix(path: Path) -> str:
    """The extension that says what a file is, its compression included: `.jsonl.gz`."""
    name = path.name.lower()
    return next((s for s in sorted(INPUT_SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def expand(spec: str | os.PathLike[str]) -> list[Path]:
    """The files that `spec` names: a file, a folder of files, or a glob of them, in order of name. Failures
    and dropped pairs, which stand beside a table of pairs, count only where nothing else fits.

    Raises ClairError where there are none, one of them is of a kind that is not read, or there is nothing
    in any of them: neither rows nor columns.
    """
    if not os.fspath(spec):
        raise UsageError("the name of a file to read is empty")
    path = Path(spec)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and suffix(p) and not _by_product(p))
        if not found:
            raise ClairError(f"{spec}: no file in this folder ends in {_one_of(INPUT_SUFFIXES)}")
        return found
    if not path.exists():
        found = sorted(Path(p) for p in glob.glob(str(spec), recursive=True) if Path(p).is_file())
        if not found:
            raise ClairError(f"{spec}: no such file")
        found = [p for p in found if not _by_product(p)] or found
    else:
        found = [path]
    for p in found:
        if not suffix(p):
            raise ClairError(
                f"{p}: what this file is cannot be told; its name must end in {_one_of(INPUT_SUFFIXES)}"
            )
    _not_empty(spec, found)
    return found


def _not_empty(spec: str | os.PathLike[str], paths: list[Path]) -> None:
    """Raises ClairError where there is nothing at all in any of the files."""
    if all(map(_holds_nothing, paths)):
        raise ClairError(f"{spec}: there is nothing in it, neither rows nor the names of columns")


def _holds_nothing(path: Path) -> bool:
    """Whether a file has no bytes but, in a text file, white space. What cannot be read is not nothing: its
    reader says what is wrong."""
    try:
        if not path.is_file():  # a pipe can be read only once
            return False
        if not path.stat().st_size:
            return True
        if suffix(path) == ".parquet":
            return False
        with open_bytes(path) as file:
            while start := file.read(1 << 14).removeprefix(b"\xef\xbb\xbf"):
                if not start.isspace():
                    return False
    except (ClairError, pa.ArrowException, OSError, EOFError, zlib.error):
        return False
    return True


def _by_product(path: Path) -> bool:
    """Whether a file stands beside a table of pairs and is none: not meant where a folder or a pattern is
    named."""
    return path.name.startswith(".") or path.name.endswith((".failures.parquet", ".dropped.parquet"))


def _one_of(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


def check_output(path: Path) -> None:
    """Raises ClairError where `path` cannot be written: no such folder, or, as a UsageError,
    another extension."""
    if not any(path.name.lower().endswith(s) for s in OUTPUT_SUFFIXES):
        raise UsageError(
            f"{path}: cannot write this kind of file; the name must end in {_one_of(OUTPUT_SUFFIXES)}"
        )
    if path.is_dir():
        raise ClairError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise ClairError(f"{path.parent}: no such folder")


def columns_of(path: Path) -> pa.Schema | None:
    """The Arrow schema of a Parquet file; None for files whose columns show only in their rows."""
    if suffix(path) != ".parquet":
        return None
    return pa.schema(parquet_file(path).schema)


def names_of(path: Path) -> list[str] | None:
    """The columns of a Parquet file by name; None for files whose columns show only in their rows."""
    return parquet_file(path).names if suffix(path) == ".parquet" else None


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file by its footer; None where only reading would tell."""
    if suffix(path) != ".parquet":
        return None
    return parquet_file(path).num_rows


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Row | BadRow]:
    """Every row of a file in order: a dict of column to value, or a BadRow in the place of a row.

    `columns` narrows what is decoded where the format allows. Memory is bounded by `BATCH_ROWS` rows
    or one line.
    Raises ClairError where the file cannot be opened at all.
    """
    kind = suffix(path)
    if kind == ".parquet":
        for item in read_batches(path, columns):
            if isinstance(item, pa.RecordBatch):
                yield from as_rows(item)
            else:
                yield item
    elif kind == ".csv":
        yield from _csv_rows(path)
    else:
        yield from _jsonl_rows(path)


def as_rows(batch: pa.RecordBatch) -> Iterator[Row | BadRow]:
    """The rows of a batch as Python objects; one that holds bytes that are no UTF-8 is a BadRow."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield BadRow(f"text that is not UTF-8 (byte {error.start} of a cell)")


def read_batches(
    path: Path, columns: list[str] | None = None, rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch | BadRow]:
    """A Parquet file as record batches of at most `rows` rows and about `BATCH_BYTES`, with a BadRow in
    the place of each row that cannot be read: a damaged row group, text that is no UTF-8, a cell beyond
    64 MiB. `columns` are columns, or parts of them as dotted paths.

    Memory holds two batches and a page of each column, whatever the sizes of row groups and pages.
    Raises ClairError where the file cannot be opened.
    """
    for item in parquet_file(path).batches(columns, rows, BATCH_BYTES):
        if isinstance(item, tuple):
            yield from bad_rows(item)
        else:
            yield pa.record_batch(item)


def bad_rows(lost: tuple[int, str, str | None]) -> Iterator[BadRow]:
    """A BadRow for each of the rows that are lost for one reason."""
    rows, reason, column = lost
    # Of a row group all of the row is lost, whatever column is damaged; the reason names it.
    return itertools.repeat(BadRow(reason, column if rows == 1 else None), rows)


def parquet_file(path: Path) -> ParquetFile:
    """An open Parquet file. Raises ClairError where it cannot be read."""
    try:
        return ParquetFile(path)
    except OSError as error:
        raise ClairError(f"{path}: {(error.strerror or first_line(error)).lower()}") from error
    except ValueError as error:
        what = str(error).removeprefix(f"{path}: ")
        raise ClairError(f"{path}: not a readable Parquet file: {what}") from error


def utf8(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate, which JSON and file names can carry, becomes `?`."""
    return text.encode("utf-8", "replace").decode()


def first_line(error: BaseException) -> str:
    """The first line of an error's text: libraries put their own internals behind it."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def open_bytes(path: Path) -> IO[bytes]:
    """A file for reading bytes, decompressed by its extension."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise ClairError(f"{path}: {error.strerror or first_line(error)}") from error
    # Small steps: of a stream that breaks off, what the last step had read is lost with it.
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 14)
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 14)
    return raw


def json_lines(path: Path) -> Iterator[bytes | BadRow]:
    """The lines of a file of JSON Lines without their ends; blank ones are left out. A stream that breaks
    is one last bad row."""
    with open_bytes(path) as file:
        first = True
        while True:
            try:
                line = file.readline(MAX_LINE_BYTES)
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield BadRow(
                        f"the line is longer than {MAX_LINE_BYTES >> 20} MiB, the most that is read"
                    )
                    continue
            except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
                yield BadRow(f"{path.name} breaks off here, what follows is lost: {first_line(error)}")
                return
            if not line:
                return
            if first:
                line = line.removeprefix(b"\xef\xbb\xbf")
                first = False
            if line := line.strip():
                yield line


def _jsonl_rows(path: Path) -> Iterator[Row | BadRow]:
    for line in json_lines(path):
        yield line if isinstance(line, BadRow) else json_row(line)


def json_row(line: bytes) -> Row | BadRow:
    """The row that a line of JSON Lines holds."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 (byte {error.start} of the line)")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {first_line(error)}")
    if not isinstance(row, dict):
        return BadRow(f"a JSON {json_type(row)}, where an object of columns was expected")
    return row


def json_type(value: object) -> str:
    """What JSON calls a value: text for people."""
    names: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "boolean"),
        (str, "string"),
        ((int, float), "number"),
        (list, "list"),
        (dict, "object"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def csv_header(path: Path) -> list[str]:
    """The columns of a CSV file, which it has even without rows; nothing of any other file."""
    if suffix(path) != ".csv":
        return []
    with open_bytes(path) as raw, _csv_text(raw) as file:
        return _header(csv.reader(file, strict=True), path)


def _csv_text(raw: IO[bytes]) -> io.TextIOWrapper:
    # Bytes that are no UTF-8 become lone surrogates, which the check of the cells finds: one bad row,
    # where a decoding error would end the file.
    return io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")


def _header(reader: Any, path: Path) -> list[str]:
    csv.field_size_limit(min(sys.maxsize, MAX_LINE_BYTES))
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise ClairError(f"{path}: the header cannot be read: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ClairError(f"{path}: column {twice[0]!r} stands in the header more than once")
    return header


def _csv_rows(path: Path) -> Iterator[Row | BadRow]:
    with open_bytes(path) as raw, _csv_text(raw) as file:
        reader = csv.reader(file, strict=True)
        header = _header(reader, path)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "field limit" in str(error):
                    most = f"{MAX_LINE_BYTES >> 20} MiB, the most that is read"
                    yield BadRow(f"a cell is longer than {most} (line {reader.line_num})")
                else:
                    yield BadRow(f"not CSV (line {reader.line_num}): {error}")
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                yield BadRow(
                    f"{len(cells)} cells where the header has {len(header)} (line {reader.line_num})"
                )
            else:
                yield dict(zip(header, cells, strict=True))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to. It takes the place of `path` when the block ends well, and is
    removed when it does not, so nobody ever sees half a file. Only a kill that nobody can catch leaves it
    behind, as `.NAME.….tmp`."""
    # A name of its own for each writer: of two that write to one path the last one wins, whole.
    temporary = path.with_name(f".{path.name}.{os.getpid():x}{secrets.token_hex(3)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
