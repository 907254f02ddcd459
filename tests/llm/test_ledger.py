"""The ledger: durable, exclusive, and never two answers to one request."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from clair_apo.errors import ClairError
from clair_apo.llm.chat import CallFailed, Sent
from clair_apo.llm.ledger import Ledger, LedgerError

BODY = '{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}'


def put(ledger: Ledger, *calls: tuple[bytes, int, Sent | CallFailed]) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(
            *(ledger.put(key, repeat, "revise", outcome, 0.1)[1] for key, repeat, outcome in calls)
        )

    asyncio.run(all_of_them())


def test_what_is_put_is_there_after_opening_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(
            ledger,
            (b"a", 0, Sent(BODY, 2, 0.1)),
            (b"a", 1, Sent("second", 1, 0.1)),
            (b"b", 0, CallFailed("http_5xx", "broken", status=500, tries=7, raw="no")),
        )
    with Ledger(tmp_path / "run") as ledger:
        first, second, failed = ledger.get(b"a", 0), ledger.get(b"a", 1), ledger.get(b"b", 0)
        assert first is not None
        assert (first.raw, first.kind, first.start) == (BODY, None, 1)
        assert second is not None
        assert second.raw == "second"
        assert failed is not None
        assert (failed.kind, failed.status, failed.message, failed.tries, failed.raw) == (
            "http_5xx",
            500,
            "broken",
            7,
            "no",
        )
        assert ledger.get(b"c", 0) is None
        assert ledger.start == 2
        totals = ledger.totals()
        assert (totals.calls, totals.retries, totals.tokens_in, totals.tokens_out) == (3, 7, 3, 4)


def test_a_later_call_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, (b"a", 0, CallFailed("timeout", "late")))
        put(ledger, (b"a", 0, Sent("now", 1, 0.1)))
        record = ledger.get(b"a", 0)
        assert record is not None
        assert record.raw == "now"
        assert ledger.totals().calls == 2
        ledger.forget([(b"a", 0)])
        assert ledger.get(b"a", 0) is None
        assert ledger.totals().calls == 2


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run"), pytest.raises(ClairError, match="in use by another run"):
        Ledger(tmp_path / "run")
    Ledger(tmp_path / "run").close()


def test_fresh_begins_anew_and_keeps_the_old_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run") as ledger:
        put(ledger, (b"a", 0, Sent(BODY, 1, 0.1)))
    with Ledger(tmp_path / "run", fresh=True) as ledger:
        assert ledger.get(b"a", 0) is None
        assert ledger.totals().calls == 0
    with sqlite3.connect(tmp_path / "run" / "ledger.old-1.sqlite") as old:
        assert old.execute("SELECT count(*) FROM calls").fetchone() == (1,)


def test_a_damaged_or_foreign_file_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(LedgerError, match="--fresh"):
        Ledger(tmp_path / "run")
    Ledger(tmp_path / "run", fresh=True).close()
    assert (tmp_path / "run" / "ledger.old-1.sqlite").read_bytes().startswith(b"this is no")
    with Ledger(tmp_path / "other") as ledger:
        ledger.set_fact("schema", 99)
    with pytest.raises(ClairError, match="another version"):
        Ledger(tmp_path / "other")
