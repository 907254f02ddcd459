"""The pair table: one schema, written the same whatever the rows hold.

A row is *conversational explicit*: `prompt` is a list of messages, `chosen` and `rejected` are lists of
one assistant message, so TRL's trainers and `datasets` take the file as it is. What the input carried
besides goes into one struct, `extra`: a loose column of the same name as one of TRL's changes what TRL
takes a row for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from clair_apo._core import ParquetWriter
from clair_apo.files import replacing, suffix

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
# Every measure of a pair but `identical` and the edits' positions, which only `stats` sums up.
MEASURES: dict[str, pa.DataType] = {
    "jaccard": pa.float64(),
    "levenshtein": pa.uint32(),
    "levenshtein_ratio": pa.float64(),
    "word_edits": pa.uint32(),
    "word_edit_ratio": pa.float64(),
    "chosen_chars": pa.uint32(),
    "rejected_chars": pa.uint32(),
    "length_ratio": pa.float64(),
}
USAGE = pa.struct(
    [
        ("calls", pa.int32()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("cost_usd", pa.float64()),
    ]
)
# One for each reply of a judge about the pair. `shown_first` is the side that stood first or, where a judge
# scores answers alone, the one that it scored: "chosen" or "rejected". `winner` is "tie" besides or, of a
# reply that cannot be used, the kind of failure.
VERDICT = pa.struct(
    [
        ("judge", pa.string()),
        ("template", pa.string()),
        ("shown_first", pa.string()),
        ("winner", pa.string()),
        ("score", pa.int32()),
        ("words", pa.string()),
    ]
)
# A text of several rounds of revision, and what the judge found of it ("chosen") and the one before.
ROUND = pa.struct(
    [
        ("content", pa.string()),
        ("model", pa.string()),
        ("judge_winner", pa.string()),
        ("judge_verdicts", pa.list_(VERDICT)),
    ]
)


# Columns that pair tables of earlier versions lack or, `extra`, those of an input without other columns.
MAY_LACK = frozenset(
    ("chosen_rating", "rejected_rating", "judge_winner", "judge_verdicts", "rounds", "extra")
)


def is_pair_table(schema: pa.Schema) -> bool:
    """Whether a schema is that of a pair table, of this version or an earlier one."""
    return {item.name for item in pair_schema()} - MAY_LACK <= set(schema.names)


def pair_schema(extra: pa.StructType | None = None) -> pa.Schema:
    """The schema of a pair table. `extra` is the type of the input's other columns, if it has any:
    Parquet knows no struct without fields, so without them the column is left out."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("chosen", MESSAGES, nullable=False),
        pa.field("rejected", MESSAGES, nullable=False),
        pa.field("rationale", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("template", pa.string()),
        pa.field("chosen_model", pa.string()),
        pa.field("rejected_model", pa.string()),
        *(pa.field(name, kind) for name, kind in MEASURES.items()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("chosen_rating", pa.float64()),
        pa.field("rejected_rating", pa.float64()),
        # "chosen", "rejected", "tie" or "disagreement", by the majority of the judges in both orders; where
        # none gave a verdict, the kind of failure
        pa.field("judge_winner", pa.string()),
        pa.field("judge_verdicts", pa.list_(VERDICT)),
        pa.field("rounds", pa.list_(ROUND)),
        pa.field("usage", USAGE),
        pa.field("created_at", pa.timestamp("us", "UTC")),
    ]
    if extra is not None and extra.num_fields:
        fields.append(pa.field("extra", extra))
    return pa.schema(fields)


def dropped_schema(extra: pa.StructType | None = None) -> pa.Schema:
    """Pairs that were left out, with the reason: `unchanged`, or the flags that dropped them. With `tie` or
    `disagreement` there is no preference, and the two answers stand as they came."""
    return pair_schema(extra).insert(1, pa.field("reason", pa.string(), nullable=False))


FAILURE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("status", pa.int32()),
        pa.field("tries", pa.int32(), nullable=False),
        pa.field("raw", pa.string()),
    ]
)


class TableWriter:
    """Writes rows to Parquet or JSON Lines by the extension of `path`; a context manager.

    What is written goes on at once, in Parquet as row groups bounded in bytes, so memory is flat. The
    file appears under its name only when the block ends without an error.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._path = path
        self._schema = schema
        self._compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
        self._replacing = replacing(path)
        self._parquet: ParquetWriter | None = None
        self._lines: Any = None
        self._finished = False

    def __enter__(self) -> TableWriter:
        temporary = self._replacing.__enter__()
        try:
            with self._named():
                if suffix(self._path) == ".parquet":
                    self._parquet = ParquetWriter(temporary, self._schema)
                else:
                    self._lines = pa.output_stream(str(temporary), compression=self._compression)
        except BaseException as error:
            self._replacing.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def write(self, rows: Sequence[Mapping[str, Any]], extra: pa.StructArray | None = None) -> None:
        """Appends `rows`, with `extra` as their last column where the schema has it; a missing key is
        a null. Raises pa.ArrowInvalid for a value of a wrong type, OSError for a full disk."""
        if not rows:
            return
        if extra is None:
            batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
        else:
            last = len(self._schema) - 1
            plain = pa.RecordBatch.from_pylist(rows, schema=self._schema.remove(last))
            batch = pa.RecordBatch.from_arrays([*plain.columns, extra], schema=self._schema)
        self.write_batch(batch)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Appends rows that are Arrow already, of the writer's schema."""
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        with self._named():
            if self._parquet is not None:
                self._parquet.write(batch)
            else:
                for row in batch.to_pylist():
                    line = json.dumps(row, ensure_ascii=False, default=json_value)
                    self._lines.write(line.encode() + b"\n")

    def finish(self) -> None:
        """Writes all of it beside its final name. Of several tables, finish each before leaving the first:
        a full disk then leaves all of the old ones or none."""
        if not self._finished:
            with self._named():
                if self._parquet is not None:
                    self._parquet.finish()
                else:
                    self._lines.close()
            self._finished = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        except BaseException as failed:
            kind, error, trace = type(failed), failed, failed.__traceback__
            raise
        finally:
            if kind is not None and not self._finished:
                if self._lines is not None:
                    with contextlib.suppress(OSError, pa.ArrowException):
                        self._lines.close()
                self._parquet = None
            self._replacing.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the disk name the file that was wanted, not the one beside it."""
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            raise


def json_value(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)
