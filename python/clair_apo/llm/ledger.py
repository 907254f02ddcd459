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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clair_apo.errors import ClairError
from clair_apo.llm.chat import CallFailed, Sent, tokens_of

SCHEMA_VERSION = 1
# How long the writer waits for company before it commits: bounds both latency and commits a second.
GATHER_SECONDS = 0.02

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY,
  key BLOB NOT NULL,          -- content of the request
  repeat INTEGER NOT NULL,    -- which of several equal rows
  live INTEGER NOT NULL,      -- 0 once a later call took this one's place
  start INTEGER NOT NULL,     -- which start of the command made the call
  stage TEXT NOT NULL,
  at REAL NOT NULL,           -- seconds since the epoch
  seconds REAL,
  tries INTEGER NOT NULL,
  kind TEXT,                  -- NULL: a reply arrived; else the kind of failure
  status INTEGER,
  message TEXT,
  raw TEXT                    -- the body as the server sent it, keys blanked
);
CREATE UNIQUE INDEX IF NOT EXISTS calls_live ON calls (key, repeat) WHERE live;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (
  one INTEGER PRIMARY KEY CHECK (one = 1), calls INTEGER, retries INTEGER, tokens_in INTEGER,
  tokens_out INTEGER
);
INSERT OR IGNORE INTO totals VALUES (1, 0, 0, 0, 0);
"""


class LedgerError(ClairError):
    """The ledger cannot be written: the disk is full, or the folder is not writable."""


@dataclass(frozen=True, slots=True)
class Record:
    """One finished call. `kind` is None where a reply arrived, whatever it says."""

    stage: str
    start: int
    at: float
    seconds: float
    tries: int
    kind: str | None
    status: int | None
    message: str | None
    raw: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the life of the run folder. Tokens are those that servers reported."""

    calls: int
    retries: int
    tokens_in: int
    tokens_out: int


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
                self._set_aside()
            self._reader = self._connect()
            self._reader.executescript(_SCHEMA)
            self._check_version()
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
        row = self._reader.execute(
            "SELECT stage, start, at, seconds, tries, kind, status, message, raw FROM calls"
            " WHERE key = ? AND repeat = ? AND live",
            (key, repeat),
        ).fetchone()
        return Record(*row) if row else None

    def put(
        self, key: bytes, repeat: int, stage: str, outcome: Sent | CallFailed, seconds: float
    ) -> tuple[Record, asyncio.Future[None]]:
        """Hands over a finished call; the future is done when it is durable, and fails with
        LedgerError when it cannot be written. To be called on the event loop."""
        if isinstance(outcome, Sent):
            record = Record(
                stage, self.start, time.time(), seconds, outcome.tries, None, 200, None, outcome.raw
            )
        else:
            record = Record(
                stage,
                self.start,
                time.time(),
                seconds,
                outcome.tries,
                outcome.kind,
                outcome.status,
                outcome.message,
                outcome.raw,
            )
        durable = asyncio.get_running_loop().create_future()
        self._queue.put(_Put(key, repeat, record, durable))
        return record, durable

    def forget(self, calls: Iterable[tuple[bytes, int]]) -> None:
        """Lets calls no longer stand for their request, so they are made again. They stay on file."""
        self._reader.execute("BEGIN IMMEDIATE")
        self._reader.executemany("UPDATE calls SET live = 0 WHERE key = ? AND repeat = ? AND live", calls)
        self._reader.execute("COMMIT")

    def totals(self) -> Totals:
        row = self._reader.execute("SELECT calls, retries, tokens_in, tokens_out FROM totals").fetchone()
        return Totals(*row)

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

    def _set_aside(self) -> None:
        """Starts over, but keeps the last ledger under another name: it was paid for, and may be mended
        where it is damaged."""
        if not self.path.exists():
            return
        number = 1
        while (kept := self.folder / f"ledger.old-{number}.sqlite").exists():
            number += 1
        for ending in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + ending)
            if part.exists():
                part.replace(kept.with_name(kept.name + ending))

    def _check_version(self) -> None:
        version = self.fact("schema")
        if version is None:
            self.set_fact("schema", SCHEMA_VERSION)
        elif version != SCHEMA_VERSION:
            raise ClairError(
                f"{self.path} was written by another version of clair-apo "
                f"(ledger format {version}, this one writes {SCHEMA_VERSION}); "
                "use another --output, or --fresh to start over"
            )

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
                failure = LedgerError(f"{self.path} cannot be written: {_why(error)}")
                if connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
            _settle(batch, failure)
        if connection is not None:
            connection.close()

    def _insert(self, connection: sqlite3.Connection, batch: list[_Put]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "UPDATE calls SET live = 0 WHERE key = ? AND repeat = ? AND live",
            [(put.key, put.repeat) for put in batch],
        )
        connection.executemany(
            "INSERT INTO calls (key, repeat, live, start, stage, at, seconds, tries, kind, status,"
            " message, raw) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    p.key,
                    p.repeat,
                    p.record.start,
                    p.record.stage,
                    p.record.at,
                    p.record.seconds,
                    p.record.tries,
                    p.record.kind,
                    p.record.status,
                    p.record.message,
                    p.record.raw,
                )
                for p in batch
            ],
        )
        tokens = [tokens_of(put.record.raw) for put in batch if put.record.raw]
        connection.execute(
            "UPDATE totals SET calls = calls + ?, retries = retries + ?, tokens_in = tokens_in + ?,"
            " tokens_out = tokens_out + ?",
            (
                len(batch),
                sum(put.record.tries - 1 for put in batch),
                sum(t[0] for t in tokens),
                sum(t[1] for t in tokens),
            ),
        )
        connection.execute("COMMIT")


@dataclass(frozen=True, slots=True)
class _Put:
    key: bytes
    repeat: int
    record: Record
    durable: asyncio.Future[None]


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
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"it is damaged ({error}); use another --output, or --fresh to start over"
    return str(error)
