"""The ledger: every finished call on disk, once, before anything is made of it.

SQLite in WAL mode with `synchronous=FULL`. One thread writes, in batches, away from the event loop;
a reply is durable within a few hundredths of a second of its arrival. What a run knows after a kill is
what stands here, and the tables are written from nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from clair_apo.errors import ClairError
from clair_apo.llm import ledger_files

# How long the writer waits for company before it commits: bounds both latency and commits a second.
GATHER_SECONDS = 0.02


class LedgerError(ClairError):
    """The ledger cannot be written: the disk is full, or the folder is not writable."""


@dataclass(frozen=True, slots=True)
class Record:
    """One finished call. `kind` is None where a reply arrived, whatever it says. Tokens are None where
    there was no reply; `counted` says that they were counted here, since the server told none. `batched`: a
    service's batch made the call, at its price."""

    role: str
    model: str
    stage: str
    start: int
    at: float
    seconds: float
    tries: int
    kind: str | None
    status: int | None
    message: str | None
    raw: str | None
    request_id: str | None = None
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    counted: bool = False
    batched: bool = False


@dataclass(frozen=True, slots=True)
class Spent:
    """Sums over the life of the run folder, for one model in one role. `counted` is the number of calls
    whose tokens were counted here; the last three are the part of the tokens that batches took."""

    role: str
    model: str
    calls: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    counted: int = 0
    batch_in: int = 0
    batch_cached: int = 0
    batch_out: int = 0


COLUMNS = [field.name for field in fields(Record)]
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM calls WHERE key = ? AND repeat = ? AND live"
_INSERT = (
    f"INSERT INTO calls (live, key, repeat, {', '.join(COLUMNS)}) VALUES (1, ?, ?{', ?' * len(COLUMNS)})"
)
_SUPERSEDE = "UPDATE calls SET live = 0 WHERE key = ? AND repeat = ? AND live"
_WHO = ("role", "model")
_SUMS = [field.name for field in fields(Spent) if field.name not in _WHO]
_ADD_UP = (
    f"INSERT INTO spent (role, model, {', '.join(_SUMS)}) VALUES (?, ?{', ?' * len(_SUMS)})"
    " ON CONFLICT (role, model) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)
)


class Ledger:
    """Open on one run folder by one process at a time; a context manager.

    `get` reads on the caller's thread; `put` hands a record to the writer and returns a future that is
    done when the record is durable.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder = folder
        self.path = folder / "ledger.sqlite"
        folder.mkdir(exist_ok=True)
        self._lock = _lock(folder / "lock")
        try:
            if fresh:
                ledger_files.set_aside(self.path, "old")
            self.mended = ledger_files.mend(self.path)
            self._reader = self._connect()
            ledger_files.prepare(self._reader, self.path)
            self.start = int(self.fact("starts") or 0) + 1
            self.set_fact("starts", self.start)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise LedgerError(f"{self.path}: {_why(error)}") from error
        except BaseException:
            os.close(self._lock)
            raise
        self._queue: queue.SimpleQueue[_Put | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is waiting, and lets the folder go."""
        self._queue.put(None)
        self._writer.join()
        self._reader.close()
        os.close(self._lock)

    def get(self, key: bytes, repeat: int) -> Record | None:
        """The call that stands for this request, or None."""
        with self._reading():
            row = self._reader.execute(_SELECT, (key, repeat)).fetchone()
        return Record(*row) if row else None

    def put(self, key: bytes, repeat: int, record: Record) -> asyncio.Future[None]:
        """Hands over a finished call; the future is done when it is durable, and fails with
        LedgerError when it cannot be written. To be called on the event loop."""
        durable = asyncio.get_running_loop().create_future()
        self._queue.put(_Put(key, repeat, record, durable))
        return durable

    def forget(self, calls: Iterable[tuple[bytes, int]]) -> None:
        """Lets calls no longer stand for their request, so they are made again. They stay on file."""
        self._reader.execute("BEGIN IMMEDIATE")
        self._reader.executemany(_SUPERSEDE, calls)
        self._reader.execute("COMMIT")

    def spent(self) -> list[Spent]:
        """What all calls have taken so far, by role and model."""
        with self._reading():
            rows = self._reader.execute(
                f"SELECT role, model, {', '.join(_SUMS)} FROM spent ORDER BY role, model"
            ).fetchall()
        return [Spent(*row) for row in rows]

    def longest_output(self, role: str) -> int | None:
        """The most output tokens of a call so far; None where there is none. Reads the whole file."""
        with self._reading():
            row = self._reader.execute(
                "SELECT max(tokens_out) FROM calls WHERE role = ?", (role,)
            ).fetchone()
        return None if row[0] is None else int(row[0])

    def fact(self, name: str) -> Any:
        """A fact about the run folder that was set before, or None."""
        row = self._reader.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_fact(self, name: str, value: object) -> None:
        self._reader.execute(
            "INSERT OR REPLACE INTO facts VALUES (?, ?)",
            (name, json.dumps(value, ensure_ascii=False)),
        )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-16000")
        return connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._failure(error, "read") from error

    def _failure(self, error: Exception, doing: str) -> LedgerError:
        if ledger_files.is_damage(error):
            ledger_files.mark_damaged(self.path)
            return LedgerError(
                f"{self.path} is damaged ({error}). Run the same command again: it sets the file aside and "
                "goes on with every call that can still be read."
            )
        return LedgerError(f"{self.path} cannot be {doing}: {_why(error)}")

    def _write(self) -> None:
        connection = None
        ending = False
        while not ending:
            waiting = [self._queue.get()]
            if waiting[0] is not None:
                time.sleep(GATHER_SECONDS)
                with contextlib.suppress(queue.Empty):
                    while True:
                        waiting.append(self._queue.get_nowait())
            batch = [item for item in waiting if item is not None]
            ending = len(batch) < len(waiting)
            if not batch:
                continue
            failure = None
            try:
                connection = connection or self._connect()
                self._insert(connection, batch)
            except Exception as error:
                # Whatever it is, those who wait must hear of it.
                failure = self._failure(error, "written")
                if connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
            _settle(batch, failure)
        if connection is not None:
            connection.close()

    def _insert(self, connection: sqlite3.Connection, batch: list[_Put]) -> None:
        rows = [(put.key, put.repeat, *(getattr(put.record, name) for name in COLUMNS)) for put in batch]
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT, rows)
        except sqlite3.IntegrityError:  # some take the place of an earlier call, which is rare
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            for put, row in zip(batch, rows, strict=True):
                connection.execute(_SUPERSEDE, (put.key, put.repeat))
                connection.execute(_INSERT, row)
        connection.executemany(_ADD_UP, _sums([put.record for put in batch]))
        connection.execute("COMMIT")


class Reader:
    """Looks into a run folder's ledger without touching it; a context manager. One that is not there, or
    that only a run could bring up to date, holds nothing."""

    def __init__(self, folder: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        path = folder / "ledger.sqlite"
        if path.exists():
            with contextlib.suppress(sqlite3.Error):
                # Nobody writes where there is no log beside it; then SQLite needs no files of its own.
                still = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
                self._connection = sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode=ro{still}", uri=True, timeout=60
                )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Holds nothing from now on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, key: bytes, repeat: int) -> Record | None:
        """The call that stands for this request, or None."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(_SELECT, (key, repeat)).fetchone()
        except sqlite3.Error:
            return None
        return Record(*row) if row else None


@dataclass(frozen=True, slots=True)
class _Put:
    key: bytes
    repeat: int
    record: Record
    durable: asyncio.Future[None]


def _sums(records: list[Record]) -> list[tuple[object, ...]]:
    """Rows of `spent` to add, one for each model in each role."""
    sums: dict[tuple[str, str], list[int]] = {}
    for record in records:
        tokens = (record.tokens_in or 0, record.tokens_cached or 0, record.tokens_out or 0)
        batch = tokens if record.batched else (0, 0, 0)
        one = (1, record.tries - 1, *tokens, int(record.counted), *batch)
        before = sums.get((record.role, record.model), [0] * len(one))
        sums[record.role, record.model] = [a + b for a, b in zip(before, one, strict=True)]
    return [(*who, *total) for who, total in sums.items()]


def _settle(batch: list[_Put], error: LedgerError | None) -> None:
    def settle() -> None:
        for put in batch:
            if put.durable.done():  # whoever waited was cancelled
                continue
            if error is None:
                put.durable.set_result(None)
            else:
                put.durable.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
        batch[0].durable.get_loop().call_soon_threadsafe(settle)


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ClairError(
            f"{path.parent} is in use by another run; wait for it to end, or choose another --output"
        ) from error
    return handle


def _why(error: Exception) -> str:
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL":
        return "the disk is full; make room and run the same command again, it goes on from here"
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return f"no permission to write there ({error})"
    return str(error)
