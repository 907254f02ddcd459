"""The ledger's file: its schema, files of older versions, and files that are damaged.

What was paid for is never overwritten: a ledger that cannot go on is set aside under another name.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from clair_apo.errors import ClairError
from clair_apo.llm.chat import read, usage_of

SCHEMA_VERSION = 3
# A check of the whole file reads all of it; beyond this size only damage that was met is looked into.
CHECKED_BYTES = 256 << 20

SCHEMA = """
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
  raw TEXT,                   -- the body as the server sent it, keys blanked
  role TEXT NOT NULL DEFAULT '',
  model TEXT NOT NULL DEFAULT '',
  request_id TEXT,            -- the server's name for the call
  tokens_in INTEGER,
  tokens_cached INTEGER,      -- a part of tokens_in
  tokens_out INTEGER,
  counted INTEGER NOT NULL DEFAULT 0, -- 1: tokens were counted here
  batched INTEGER NOT NULL DEFAULT 0  -- 1: made by a service's batch, at its price
);
CREATE UNIQUE INDEX IF NOT EXISTS calls_live ON calls (key, repeat) WHERE live;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (  -- sums over all calls, also those that stand no more
  role TEXT NOT NULL, model TEXT NOT NULL, calls INTEGER, retries INTEGER, tokens_in INTEGER,
  tokens_cached INTEGER, tokens_out INTEGER, counted INTEGER, batch_in INTEGER NOT NULL DEFAULT 0,
  batch_cached INTEGER NOT NULL DEFAULT 0, batch_out INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (role, model)
);
"""
_NEW_IN_2 = (
    "role TEXT NOT NULL DEFAULT ''",
    "model TEXT NOT NULL DEFAULT ''",
    "request_id TEXT",
    "tokens_in INTEGER",
    "tokens_cached INTEGER",
    "tokens_out INTEGER",
    "counted INTEGER NOT NULL DEFAULT 0",
)
_NEW_IN_3 = {
    "calls": ("batched INTEGER NOT NULL DEFAULT 0",),
    "spent": tuple(
        f"{name} INTEGER NOT NULL DEFAULT 0" for name in ("batch_in", "batch_cached", "batch_out")
    ),
}


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables, or brings those of an older version up. Raises ClairError for a newer one."""
    try:
        version = _version(connection)
    except (sqlite3.OperationalError, ValueError, TypeError) as error:
        raise ClairError(f"{path} is no ledger of clair-apo ({error}); use another --output") from error
    if version == 1:
        _from_1(connection)
    elif version == 2:
        _from_2(connection)
    elif version is not None and version != SCHEMA_VERSION:
        raise ClairError(
            f"{path} was written by another version of clair-apo (ledger format {version}, this one writes "
            f"{SCHEMA_VERSION}); use another --output, or --fresh to start over"
        )
    connection.executescript(SCHEMA)
    connection.execute("INSERT OR REPLACE INTO facts VALUES ('schema', ?)", (json.dumps(SCHEMA_VERSION),))


def mend(path: Path) -> str | None:
    """Sets a damaged ledger aside and copies what can be read of it into a new one. Returns words for a
    person, or None where nothing is wrong."""
    marker = _marker(path)
    if not path.is_file() or not (marker.exists() or _is_damaged(path)):
        return None
    kept = set_aside(path, "damaged")
    assert kept is not None
    found = 0
    new = sqlite3.connect(path, isolation_level=None)
    try:
        new.executescript(SCHEMA)
        with contextlib.suppress(sqlite3.DatabaseError):
            found = _salvage(kept, new)
        new.execute("INSERT OR REPLACE INTO facts VALUES ('schema', ?)", (json.dumps(SCHEMA_VERSION),))
    finally:
        new.close()
    marker.unlink(missing_ok=True)
    return (
        f"{path} was damaged and is set aside as {kept.name}; {found:,} calls could be read from it and "
        "are used again, what could not is asked anew"
    )


def set_aside(path: Path, word: str) -> Path | None:
    """Gives the ledger another name: it was paid for, and may be wanted. None where there is none."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}.{word}-{number}.sqlite")).exists():
        number += 1
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.replace(kept.with_name(kept.name + ending))
    return kept


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite's says that the file is not what it should be."""
    return str(getattr(error, "sqlite_errorname", "")).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def mark_damaged(path: Path) -> None:
    """Lets the next start look into a file in which damage was met."""
    with contextlib.suppress(OSError):
        _marker(path).touch()


def _marker(path: Path) -> Path:
    return path.with_name("damaged")


def _is_damaged(path: Path) -> bool:
    if path.stat().st_size == 0:  # a run that has come to its end has left more
        return path.with_name("summary.json").exists()
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if path.stat().st_size > CHECKED_BYTES:
            return False
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return True
        raise
    finally:
        connection.close()


def _salvage(kept: Path, new: sqlite3.Connection) -> int:
    """Copies facts, sums and calls row by row, leaving out what cannot be read."""
    with _complete(kept) as path:
        return _copy(path, new)


@contextlib.contextmanager
def _complete(kept: Path) -> Iterator[Path]:
    """The file, or where its end is missing a copy that says so: SQLite opens none that is shorter than
    its head tells."""
    size = kept.stat().st_size
    with kept.open("rb") as file:
        head = file.read(100)
    page = int.from_bytes(head[16:18], "big")
    page = 65536 if page == 1 else page
    pages = size // page if page else 0
    if len(head) < 100 or not pages or pages >= int.from_bytes(head[28:32], "big"):
        yield kept
        return
    copy = kept.with_name(kept.name + ".copy")
    shutil.copyfile(kept, copy)
    try:
        with copy.open("r+b") as file:
            file.truncate(pages * page)
            file.seek(28)
            file.write(pages.to_bytes(4, "big"))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _copy(path: Path, new: sqlite3.Connection) -> int:
    old = sqlite3.connect(path, isolation_level=None)
    old.row_factory = sqlite3.Row
    if _version(old) == 1:
        _from_1(old)
    new.execute("BEGIN")
    found = 0
    for table, replaced in (("facts", "OR REPLACE"), ("spent", "OR REPLACE"), ("calls", "OR IGNORE")):
        for row in _readable(old, table):
            names = row.keys()
            try:
                cursor = new.execute(
                    f"INSERT {replaced} INTO {table} ({', '.join(names)})"
                    f" VALUES ({', '.join('?' * len(names))})",
                    tuple(row),
                )
            except sqlite3.IntegrityError:
                continue
            found += cursor.rowcount if table == "calls" else 0
    new.execute("COMMIT")
    old.close()
    return found


def _readable(old: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """Rows that can be read, one at a time: a damaged page costs only those on it."""
    try:
        ids = [row[0] for row in old.execute(f"SELECT rowid FROM {table}")]
    except sqlite3.DatabaseError:
        ids = list(range(1, _most(old) + 1)) if table == "calls" else []
    for rowid in ids:
        with contextlib.suppress(sqlite3.DatabaseError):
            row = old.execute(f"SELECT * FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
            if row is not None:
                yield row


def _most(old: sqlite3.Connection) -> int:
    """An upper bound of the row ids, also where the table cannot be walked."""
    with contextlib.suppress(sqlite3.DatabaseError, TypeError):
        return int(old.execute("SELECT max(rowid) FROM calls").fetchone()[0])
    with contextlib.suppress(sqlite3.DatabaseError, TypeError):
        return int(old.execute("SELECT sum(calls) FROM spent").fetchone()[0])
    return 0


def _version(connection: sqlite3.Connection) -> int | None:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "facts" not in tables:
        return None
    row = connection.execute("SELECT value FROM facts WHERE name = 'schema'").fetchone()
    return int(json.loads(row[0])) if row else None


def _from_1(connection: sqlite3.Connection) -> None:
    """Version 1 had neither roles nor tokens a call; both follow from what it had."""
    connection.execute("BEGIN IMMEDIATE")
    for column in _NEW_IN_2 + _NEW_IN_3["calls"]:
        connection.execute(f"ALTER TABLE calls ADD COLUMN {column}")
    row = connection.execute("SELECT value FROM facts WHERE name = 'settings'").fetchone()
    settings = json.loads(row[0]) if row else {}
    for stage, role in (("sample", "model"), ("revise", "reviser")):
        connection.execute(
            "UPDATE calls SET role = ?, model = ? WHERE stage = ?", (role, settings.get(role) or "", stage)
        )
    for (rowid,) in connection.execute("SELECT id FROM calls WHERE kind IS NULL").fetchall():
        raw = connection.execute("SELECT raw FROM calls WHERE id = ?", (rowid,)).fetchone()[0]
        usage = usage_of(read(raw or ""))
        connection.execute(
            "UPDATE calls SET tokens_in = ?, tokens_cached = ?, tokens_out = ? WHERE id = ?",
            (usage.tokens_in, usage.cached, usage.tokens_out, rowid),
        )
    for statement in SCHEMA.split(";\n"):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO spent (role, model, calls, retries, tokens_in, tokens_cached, tokens_out, counted)"
        " SELECT role, model, count(*), sum(tries - 1), sum(coalesce(tokens_in, 0)),"
        " sum(coalesce(tokens_cached, 0)), sum(coalesce(tokens_out, 0)), 0 FROM calls GROUP BY role, model"
    )
    connection.execute("DROP TABLE totals")
    connection.execute("UPDATE facts SET value = ? WHERE name = 'schema'", (json.dumps(SCHEMA_VERSION),))
    connection.execute("COMMIT")


def _from_2(connection: sqlite3.Connection) -> None:
    """Version 2 knew no batches."""
    connection.execute("BEGIN IMMEDIATE")
    for table, columns in _NEW_IN_3.items():
        for column in columns:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    connection.execute("UPDATE facts SET value = ? WHERE name = 'schema'", (json.dumps(SCHEMA_VERSION),))
    connection.execute("COMMIT")
