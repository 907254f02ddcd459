"""The ledger: durable, exclusive, never two answers to one request, and never overwritten."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from clair_apo.errors import ClairError
from clair_apo.llm.ledger import Ledger, Reader, Record, Spent
from clair_apo.llm.prices import Price
from clair_apo.llm.spending import cost_of

BODY = '{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}'


def reply(raw: str, tries: int = 1, tokens: tuple[int, int] = (3, 4), role: str = "reviser") -> Record:
    return Record(
        role, "m", "revise", 1, 0.0, 0.1, tries, None, 200, None, raw, "req-1", tokens[0], 0, tokens[1]
    )


def failure(kind: str, message: str, tries: int = 1) -> Record:
    return Record("reviser", "m", "revise", 1, 0.0, 0.1, tries, kind, 500, message, "no")


def put(ledger: Ledger, *calls: tuple[bytes, int, Record]) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(ledger.put(*call) for call in calls))

    asyncio.run(all_of_them())


def test_what_is_put_is_there_after_opening_again(tmp_path: Path) -> None:
    calls = (
        (b"a", 0, reply(BODY, 2)),
        (b"a", 1, reply("second")),
        (b"b", 0, failure("http_5xx", "broken", 7)),
        (b"c", 0, reply(BODY, role="model")),
    )
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, *calls)
    with Ledger(tmp_path / "run") as ledger:
        for key, repeat, record in calls:
            assert ledger.get(key, repeat) == record
        assert ledger.get(b"d", 0) is None
        assert ledger.start == 2
        assert ledger.spent() == [
            Spent("model", "m", 1, 0, 3, 0, 4, 0),
            Spent("reviser", "m", 3, 7, 6, 0, 8, 0),
        ]
    with Reader(tmp_path / "run") as reader:
        assert reader.get(b"a", 1) == calls[1][2]
    with Reader(tmp_path / "no-run") as reader:
        assert reader.get(b"a", 1) is None
    assert not (tmp_path / "no-run").exists()


def test_a_later_call_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, (b"a", 0, failure("timeout", "late")), (b"b", 0, reply("b")))
        put(ledger, (b"a", 0, reply("now")), (b"c", 0, reply("c")))
        for key, raw in ((b"a", "now"), (b"b", "b"), (b"c", "c")):
            record = ledger.get(key, 0)
            assert record is not None
            assert record.raw == raw
        assert ledger.spent()[0].calls == 4
        ledger.forget([(b"a", 0)])
        assert ledger.get(b"a", 0) is None
        assert ledger.spent()[0].calls == 4


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run"), pytest.raises(ClairError, match="in use by another run"):
        Ledger(tmp_path / "run")
    Ledger(tmp_path / "run").close()


def test_fresh_begins_anew_and_keeps_the_old_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, (b"a", 0, reply(BODY)))
    with Ledger(tmp_path / "run", fresh=True) as ledger:
        assert ledger.get(b"a", 0) is None
        assert ledger.spent() == []
    with sqlite3.connect(tmp_path / "run" / "ledger.old-1.sqlite") as old:
        assert old.execute("SELECT count(*) FROM calls").fetchone() == (1,)


def test_a_file_that_is_no_ledger_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").write_bytes(b"this is no database" * 100)
    with Ledger(tmp_path / "run") as ledger:
        assert ledger.mended is not None
        assert "ledger.damaged-1.sqlite" in ledger.mended
        assert ledger.get(b"a", 0) is None
    assert (tmp_path / "run" / "ledger.damaged-1.sqlite").read_bytes().startswith(b"this is no")


def test_what_can_be_read_of_a_damaged_ledger_is_used(tmp_path: Path) -> None:
    """A page of the middle is overwritten, as a failing disk does."""
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, *((bytes([n]), 0, reply(f"{n} " + "x" * 3000)) for n in range(100)))
    path = tmp_path / "run" / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b"\xff" * 8192
    path.write_bytes(data)
    with Ledger(tmp_path / "run") as ledger:
        assert ledger.mended is not None
        found = [n for n in range(100) if ledger.get(bytes([n]), 0) is not None]
        assert 80 <= len(found) < 100
        assert f"{len(found)} calls could be read" in ledger.mended
        assert ledger.spent()[0].calls == 100
    assert (tmp_path / "run" / "ledger.damaged-1.sqlite").read_bytes() == bytes(data)
    with Ledger(tmp_path / "run") as ledger:
        assert ledger.mended is None


def test_a_ledger_whose_end_is_missing_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, *((bytes([n]), 0, reply(f"{n} " + "x" * 3000)) for n in range(100)))
    path = tmp_path / "run" / "ledger.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 100])
    with Ledger(tmp_path / "run") as ledger:
        found = [n for n in range(100) if ledger.get(bytes([n]), 0) is not None]
        assert 30 <= len(found) < 60
        assert ledger.mended is not None
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if "copy" in p.name) == []


def test_looking_into_a_ledger_leaves_nothing_behind(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, (b"a", 0, reply(BODY)))
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with Reader(tmp_path / "run") as reader:
        assert reader.get(b"a", 0) is not None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_a_database_of_somebody_else_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("CREATE TABLE facts (a, b)")
    with pytest.raises(ClairError, match="is no ledger of clair-apo"):
        Ledger(tmp_path / "run")


def test_a_newer_version_is_refused_in_words(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        ledger.set_fact("schema", 99)
    with pytest.raises(ClairError, match="another version"):
        Ledger(tmp_path / "run")


def test_a_ledger_of_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.executescript(VERSION_1)
        row = (b"a", 0, 1, 1, "revise", 5.0, 0.5, 3, None, 200, None, BODY)
        db.execute(f"INSERT INTO calls VALUES (NULL, {', '.join('?' * 12)})", row)
        row = (b"b", 0, 1, 1, "sample", 5.0, 0.5, 7, "http_5xx", 500, "broken", "no")
        db.execute(f"INSERT INTO calls VALUES (NULL, {', '.join('?' * 12)})", row)
    with Ledger(tmp_path / "run") as ledger:
        assert ledger.get(b"a", 0) == Record(
            "reviser", "gpt", "revise", 1, 5.0, 0.5, 3, None, 200, None, BODY, None, 3, 0, 4
        )
        assert ledger.spent() == [
            Spent("model", "student", 1, 6, 0, 0, 0, 0),
            Spent("reviser", "gpt", 1, 2, 3, 0, 4, 0),
        ]
        assert ledger.start == 2
        put(ledger, (b"c", 0, reply(BODY)))
    Ledger(tmp_path / "run").close()


def test_a_ledger_of_version_2_is_read(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, (b"a", 0, reply(BODY)))
        before, spent = ledger.get(b"a", 0), ledger.spent()
        assert before
        ledger.set_fact("schema", 2)
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("ALTER TABLE calls DROP COLUMN batched")
        for name in ("batch_in", "batch_cached", "batch_out"):
            db.execute(f"ALTER TABLE spent DROP COLUMN {name}")
    with Ledger(tmp_path / "run") as ledger:
        assert (ledger.get(b"a", 0), ledger.spent()) == (before, spent)
        put(ledger, (b"b", 0, replace(reply(BODY), batched=True)))
        (both,) = ledger.spent()
        assert (both.tokens_in, both.batch_in) == (2 * spent[0].tokens_in, spent[0].tokens_in)
    price = Price(1.0, 0.0)
    assert cost_of([both], {(both.role, both.model): price}) == pytest.approx(
        1.5 * spent[0].tokens_in / 1e6
    )


VERSION_1 = """
CREATE TABLE calls (id INTEGER PRIMARY KEY, key BLOB NOT NULL, repeat INTEGER NOT NULL,
  live INTEGER NOT NULL, start INTEGER NOT NULL, stage TEXT NOT NULL, at REAL NOT NULL,
  seconds REAL, tries INTEGER NOT NULL, kind TEXT, status INTEGER, message TEXT, raw TEXT);
CREATE UNIQUE INDEX calls_live ON calls (key, repeat) WHERE live;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE totals (one INTEGER PRIMARY KEY CHECK (one = 1), calls INTEGER, retries INTEGER,
  tokens_in INTEGER, tokens_out INTEGER);
INSERT INTO totals VALUES (1, 2, 8, 3, 4);
INSERT INTO facts VALUES ('schema', '1'), ('starts', '1'),
  ('settings', '{"model": "student", "reviser": "gpt"}');
"""
