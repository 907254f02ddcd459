"""The input of build-pairs: rows of a file as prompts and answers, good ones and bad ones.

A bad cell makes one failure row that says file, row and column; the others go on. The input is read
twice, once to make the calls and once to write the tables, and never held as a whole.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from clair_apo import files
from clair_apo.build.answers import MAX_CELL_BYTES, BadAnswers, from_columns, from_list
from clair_apo.build.draft import Answer
from clair_apo.build.extra import from_batch, struct_type
from clair_apo.errors import ClairError
from clair_apo.files import BadRow
from clair_apo.llm.chat import Message
from clair_apo.loose import LooseTypes, from_records
from clair_apo.quoting import quoted

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class InputRow:
    """One prompt to make a pair for. `content` is a digest of prompt and answer; `repeat` counts the
    earlier rows with the same content. `more` are further answers of the model's own; `answers` those of
    other models, at least two, or `answers_fault` says why there are none."""

    number: int
    id: str
    messages: list[Message]
    response: str | None
    content: bytes
    repeat: int
    more: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    answers_fault: str | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """The model's own answers, as far as they are given."""
        return self.more if self.response is None else (self.response, *self.more)


@dataclass(frozen=True, slots=True)
class UnusableRow:
    """A row that cannot be used, and why."""

    number: int
    id: str | None
    prompt: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows, and what else their columns hold, row for row (None: nothing else)."""

    rows: list[InputRow | UnusableRow]
    extra: pa.StructArray | None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns mean what. `more` are further answers of the model's own. Answers of other models stand
    in one column, `answers`, or in `answer_columns` with their `rating_columns`."""

    prompt: str = "prompt"
    response: str | None = None
    id: str | None = None
    more: tuple[str, ...] = ()
    answers: str | None = None
    answer_columns: tuple[str, ...] = ()
    rating_columns: tuple[str, ...] = ()

    @property
    def named(self) -> set[str]:
        """Those that have a place of their own in the pair table; all others come along in `extra`."""
        return {name for name in (self.prompt, self.response, self.id) if name}

    @property
    def read(self) -> set[str]:
        """Those that are looked into."""
        others = {self.answers} if self.answers else set()
        return self.named | others | {*self.more, *self.answer_columns, *self.rating_columns}


@dataclass(frozen=True, slots=True)
class Survey:
    """What reading the whole input once tells: the usable rows by the number of the model's own answers
    that they hold, and the type of the other columns."""

    rows: int
    own: Mapping[int, int]
    extra: pa.StructType | None

    def rows_lacking(self, wanted: int) -> int:
        """The rows that hold fewer than `wanted` answers of the model's own."""
        return sum(rows for held, rows in self.own.items() if held < wanted)

    def lacking(self, wanted: int) -> int:
        """The answers that are missing for each row to have `wanted`."""
        return sum(rows * max(0, wanted - held) for held, rows in self.own.items())


@dataclass(slots=True)
class Input:
    """The selected rows of the input files. `limit` takes the first rows, `sample` draws from those."""

    spec: str
    columns: Columns
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    paths: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.paths = files.expand(self.spec)
        self.columns = _resolve(self.paths, self.columns)

    def survey(self) -> Survey:
        """Reads the selected rows once and says what they hold."""
        rows = 0
        own: Counter[int] = Counter()
        types = LooseTypes(self.columns.named)
        for source in self._selected():
            rows += 1
            if isinstance(source.record, dict):
                if (held := self._own_answers(source.record)) is not None:
                    own[held] += 1
                if source.batch is None:
                    types.see(source.record)
        schemas = [schema for path in self.paths if (schema := files.columns_of(path)) is not None]
        extra = struct_type(schemas, types.schema(), self.columns.named)
        return Survey(rows, own, extra)

    def chunks(self, extra: pa.StructType | None = None) -> Iterator[Chunk]:
        """The selected rows in order. With `extra`, the other columns come along as that type."""
        with _Repeats() as repeats:
            selected = self._selected(repeats)
            for part in _parts(selected):
                rows = [source.row for source in part if source.row is not None]
                yield Chunk(rows, None if extra is None else _extra_array(part, extra))

    def _selected(self, repeats: _Repeats | None = None) -> Iterator[_Source]:
        """The selected records; as rows too where `repeats` is given."""
        chosen = self._chosen()
        for number, source in enumerate(islice(self._records(), self.limit)):
            if repeats is not None:
                # Rows that are not selected are counted too, so ids do not hang on the selection.
                source.row = self._row(number, source, repeats)
            if chosen is None or chosen[number]:
                yield source

    def _chosen(self) -> bytearray | None:
        if self.sample is None:
            return None
        total = sum(1 for _ in islice(self._records(), self.limit))
        chosen = bytearray(total)
        for number in random.Random(self.seed).sample(range(total), min(self.sample, total)):
            chosen[number] = 1
        return chosen

    def _records(self) -> Iterator[_Source]:
        for path in self.paths:
            if files.suffix(path) != ".parquet":
                for number, record in enumerate(files.read_rows(path)):
                    yield _Source(f"{path}, row {number}", record)
                continue
            number = 0
            for item in files.read_batches(path):
                if isinstance(item, BadRow):
                    yield _Source(f"{path}, row {number}", item)
                    number += 1
                    continue
                # Only these become Python objects; the others pass through as Arrow, of any type.
                named = item.select([name for name in item.schema.names if name in self.columns.read])
                for index, record in enumerate(files.as_rows(named)):
                    yield _Source(f"{path}, row {number}", record, item, index)
                    number += 1

    def _own_answers(self, record: files.Row) -> int | None:
        """How many answers of the model's own a row holds; None where it cannot be used."""
        try:
            _messages(record, self.columns.prompt)
            given = _response(record, self.columns.response) is not None
            return given + len(_more(record, self.columns))
        except _BadCell:
            return None

    def _row(self, number: int, source: _Source, repeats: _Repeats) -> InputRow | UnusableRow:
        record, where = source.record, source.where
        if isinstance(record, BadRow):
            return UnusableRow(number, None, None, f"{where}: {record.reason}")
        shown = _shown_prompt(record.get(self.columns.prompt))
        row_id: str | None = None
        try:
            messages = _messages(record, self.columns.prompt)
            response = _response(record, self.columns.response)
            content = _digest(messages, response)
            repeat = repeats.count(content)
            row_id = (
                content.hex()[:20] + (f"-{repeat + 1}" if repeat else "")
                if self.columns.id is None
                else _own_id(record, self.columns.id)
            )
            more = _more(record, self.columns)
            _check_sizes(messages, response, self.columns)
        except _BadCell as bad:
            return UnusableRow(number, row_id, shown, f"{where}, column {bad.column!r}: {bad.reason}")
        try:
            answers, fault = _answers(record, self.columns), None
        except BadAnswers as bad:  # only who wants them misses them
            answers, fault = (), f"{where}, column {bad.column!r}: {bad.reason}"
        return InputRow(number, row_id, messages, response, content, repeat, more, answers, fault)


@dataclass(slots=True)
class _Source:
    """A record as read, the words that say where it stands, and for Parquet the batch it is from."""

    where: str
    record: files.Row | BadRow
    batch: pa.RecordBatch | None = None
    index: int = 0
    row: InputRow | UnusableRow | None = None


def _parts(sources: Iterator[_Source]) -> Iterator[list[_Source]]:
    """Consecutive rows, bounded in number and in text."""
    part: list[_Source] = []
    size = 0
    for source in sources:
        part.append(source)
        if isinstance(source.row, InputRow):
            size += len(source.row.response or "") + sum(len(m["content"]) for m in source.row.messages)
        if len(part) >= files.BATCH_ROWS or size >= files.BATCH_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


class _BadCell(Exception):
    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        self.reason = reason


def _messages(record: files.Row, column: str) -> list[Message]:
    if column not in record:
        raise _BadCell(column, "the row has no such column")
    cell = record[column]
    if isinstance(cell, str):
        if not cell.strip():
            raise _BadCell(column, "the prompt is empty")
        as_list = _json_messages(cell)
        if as_list is None:
            return [{"role": "user", "content": _text(cell, column)}]
        cell = as_list
    if cell is None:
        raise _BadCell(column, "the prompt is null")
    if not isinstance(cell, list):
        raise _BadCell(column, f"a {files.json_type(cell)}, where text or a list of messages belongs")
    messages = [_message(item, index, column) for index, item in enumerate(cell)]
    if not messages:
        raise _BadCell(column, "the list of messages is empty")
    if messages[-1]["role"] not in ("user", "tool"):
        raise _BadCell(
            column,
            "the last message must be the user's; the model's own answer belongs "
            "in a column of its own (--response-column)",
        )
    if not messages[-1]["content"].strip():
        raise _BadCell(column, "the last message is empty")
    return messages


def _message(item: object, index: int, column: str) -> Message:
    if not isinstance(item, dict):
        raise _BadCell(
            column,
            f"message {index} is a {files.json_type(item)}, not an object with role and content",
        )
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise _BadCell(column, f"message {index} has the role {role!r}; known are {', '.join(ROLES)}")
    if isinstance(content, list):  # content parts, of which only text can be revised
        parts = [
            part["text"]
            for part in content
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        ]
        if len(parts) != len(content):
            raise _BadCell(column, f"message {index} holds something other than text")
        content = "".join(parts)
    if not isinstance(content, str):
        raise _BadCell(
            column,
            f"the content of message {index} is a {files.json_type(content)}, where text belongs",
        )
    return {"role": role, "content": _text(content, column)}


def _json_messages(cell: str) -> list[Any] | None:
    """A message list that stands in a cell as JSON, as it must in CSV; None for any other text."""
    if not cell.lstrip().startswith("["):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, dict) and "role" in item and "content" in item for item in value)
    ):
        return value
    return None


def _response(record: files.Row, column: str | None) -> str | None:
    cell = record.get(column) if column else None
    if _is_missing(cell) or column is None:
        return None
    if isinstance(cell, list):
        # An answer as TRL writes it: a list of one assistant message.
        messages = [_message(item, index, column) for index, item in enumerate(cell)]
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise _BadCell(column, "a list of messages, where one answer belongs")
        cell = messages[0]["content"]
    if not isinstance(cell, str):
        raise _BadCell(column, f"a {files.json_type(cell)}, where text belongs")
    return _text(cell, column)


def _more(record: files.Row, columns: Columns) -> tuple[str, ...]:
    found = (_response(record, name) for name in columns.more)
    return tuple(answer for answer in found if answer is not None)


def _answers(record: files.Row, columns: Columns) -> tuple[Answer, ...]:
    if columns.answers:
        return from_list(record.get(columns.answers), columns.answers)
    if columns.answer_columns:
        return from_columns(record, columns.answer_columns, columns.rating_columns)
    return ()


def _is_missing(cell: object) -> bool:
    # CSV knows no null, so an empty answer means that there is none.
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _text(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _BadCell(column, f"not valid Unicode text (character {error.start})") from None
    return text


def _check_sizes(messages: list[Message], response: str | None, columns: Columns) -> None:
    sizes = [
        (columns.prompt, sum(len(message["content"].encode()) for message in messages)),
        (columns.response or "", len((response or "").encode())),
    ]
    for column, size in sizes:
        if size > MAX_CELL_BYTES:
            raise _BadCell(
                column,
                f"{size / (1 << 20):.1f} MiB of text in one cell; the most is {MAX_CELL_BYTES >> 20} MiB",
            )


def _own_id(record: files.Row, column: str) -> str:
    value = record.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what pandas makes of whole numbers beside a null
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _BadCell(column, f"{value!r} is no id; text or a whole number belongs there")
    return _text(str(value), column)


def _digest(messages: list[Message], response: str | None) -> bytes:
    """Of the JSON text `[messages, response]`, keys sorted: ids are made of it, so it may never change."""
    parts = [
        b'{"content": %b, "role": %b}' % (quoted(message["content"]), quoted(message["role"]))
        for message in messages
    ]
    answer = b"null" if response is None else quoted(response)
    return hashlib.sha256(b"[[%b], %b]" % (b", ".join(parts), answer)).digest()[:16]


def _shown_prompt(cell: object, most: int = 2000) -> str | None:
    """What of a prompt a failure row shows."""
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return files.utf8(text[:most])


class _Repeats:
    """Counts equal contents over any number of rows, on disk beyond a few megabytes."""

    def __enter__(self) -> _Repeats:
        self._db = sqlite3.connect("", isolation_level=None)  # "": a temporary file of SQLite's own
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE seen (content BLOB PRIMARY KEY, n INT) WITHOUT ROWID")
        self._db.execute("BEGIN")
        return self

    def count(self, content: bytes) -> int:
        """How often `content` was counted before."""
        row = self._db.execute(
            "INSERT INTO seen VALUES (?, 0) ON CONFLICT (content) DO UPDATE SET n = n + 1 RETURNING n",
            (content,),
        ).fetchone()
        return int(row[0])

    def __exit__(self, *_: object) -> None:
        self._db.close()


def _resolve(paths: list[Path], columns: Columns) -> Columns:
    """Settles the columns against the files. Raises ClairError for one that is missing or of a wrong
    type; the response column is optional unless it was named."""
    flags = {
        "--prompt-column": (columns.prompt,),
        "--id-column": (columns.id,),
        "--response-column": (columns.response,),
        "--more-response-columns": columns.more,
        "--answers-column": (columns.answers,),
        "--answer-columns": columns.answer_columns,
        "--rating-columns": columns.rating_columns,
    }
    needed = [(flag, name) for flag, names in flags.items() for name in names if name]
    settled = replace(columns, response=columns.response or "response")
    for path in paths:
        schema = files.columns_of(path)
        if schema is not None:
            for _, name in needed:
                if schema.names.count(name) > 1:
                    raise ClairError(f"{path}: column {name!r} stands there more than once")
        missing, names = _missing_columns(path, schema, {name for _, name in needed})
        for flag, name in needed:
            if name in missing:
                raise ClairError(
                    f"{path}: no column {name!r}; it has {', '.join(names) or 'none'}. "
                    f"Name another with {flag}."
                )
        for column in (settled.prompt, settled.response, *settled.more):
            if column and schema is not None and column in schema.names:
                _check_type(path, schema, column)
    return settled


def _missing_columns(path: Path, schema: pa.Schema | None, wanted: set[str]) -> tuple[set[str], list[str]]:
    """Which of `wanted` no row has, and the columns there are. Empty files miss nothing."""
    if schema is not None:
        return wanted - set(schema.names), schema.names
    missing, names = set(wanted), dict[str, None]()
    for record in files.read_rows(path):
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
            missing -= record.keys()
            if not missing:
                break
    return (missing, list(names)) if names else (set(), [])


def _check_type(path: Path, schema: pa.Schema, name: str) -> None:
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind)
    if not text and not (listed and pa.types.is_struct(kind.value_type)):
        raise ClairError(
            f"{path}: column {name!r} is of type {schema.field(name).type}; text or a "
            "list of messages belongs there"
        )


def _extra_array(sources: list[_Source], extra: pa.StructType) -> pa.StructArray:
    """The other columns of consecutive records, as structs of one type."""
    parts = []
    for _, group in groupby(sources, key=lambda source: id(source.batch)):
        run = list(group)
        batch = run[0].batch
        if batch is None:
            parts.append(from_records([source.record for source in run], extra))
        else:
            parts.append(from_batch(batch, [source.index for source in run], extra))
    return pa.concat_arrays(parts)
