"""A run that is stopped, in every way there is, and goes on."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cli import asks, build, clair, environment, rows, start, texts, write_prompts
from loopback import Answer, Asked, Loopback, error, marked, upper, wait_for


def test_kill_at_any_moment_repays_nothing(shared_data: Path, tmp_path: Path) -> None:
    """All real revisions, killed at twenty random moments, against an undisturbed run.

    Each moment is counted from what the server has sent, since a busy machine may take seconds before the
    first call: after 0 to 7 replies, and some part of the time that the next one takes. Twice it is before
    any call.
    """
    real = pq.read_table(shared_data / "pairs_revision.parquet").to_pylist()
    source = write_prompts(
        tmp_path / "in.parquet",
        prompt=[r["prompt"] for r in real],
        response=[r["rejected"] for r in real],
    )
    known = {(r["prompt"], r["rejected"]): r["chosen"] for r in real}
    latency = 0.25

    def behave(body: dict[str, Any], _: int) -> Answer:
        said = body["messages"][0]["content"]
        chosen = next(c for (p, r), c in known.items() if r in said and p in said)
        return Answer(marked(chosen), delay=latency)

    with Loopback(behave) as server:
        build(source, tmp_path / "calm.parquet", *asks(server))
        calls = len(server.asked)
        assert calls == len(real) == 200
        out = tmp_path / "pairs.parquet"
        dice = random.Random(20)
        killed = []
        flags = [
            "build-pairs",
            "--input",
            source,
            "--output",
            out,
            *asks(server, "--concurrency", 4),
        ]
        for number in range(20):
            process = start(*flags)
            before = len(server.asked)
            if number not in (0, 9):
                _wait_for_replies(server, before, dice.randint(0, 7))
            time.sleep(dice.uniform(0, latency))
            process.kill()
            killed.append(time.monotonic())
            process.wait()
        recorded = _recorded(out)
        done = clair(*flags)
        assert done.returncode == 0, done.stderr
        repaid = _repaid(server.asked[calls:], killed)
    assert 20 < recorded < len(real), "nothing was killed mid-way"
    assert repaid == []
    assert texts(out) == texts(tmp_path / "calm.parquet")
    assert _recorded(out) == len(real)
    assert _doubled(out) == 0


def _wait_for_replies(server: Loopback, before: int, number: int) -> None:
    """Until there is a call after the first `before` ones, and so many replies to those."""

    def there() -> bool:
        new = server.asked[before:]
        return bool(new) and sum(item.replied is not None for item in new) >= number

    wait_for(there, 60)


def _repaid(asked: list[Asked], killed: list[float]) -> list[str]:
    """Requests that were made again although their reply had arrived a fifth of a second before a
    kill: by then it is on disk."""
    earlier: dict[str, Asked] = {}
    found = []
    for item in asked:
        before = earlier.get(item.last)
        if before is not None and before.replied is not None:
            kill = next(at for at in killed if at > before.at)
            if before.replied < kill - 0.2:
                found.append(item.last[:60])
        earlier[item.last] = item
    return found


def _recorded(out: Path) -> int:
    with sqlite3.connect(out.with_name("pairs.run") / "ledger.sqlite") as db:
        return int(db.execute("SELECT count(*) FROM calls WHERE live").fetchone()[0])


def _doubled(out: Path) -> int:
    with sqlite3.connect(out.with_name("pairs.run") / "ledger.sqlite") as db:
        return int(db.execute("SELECT count(*) FROM calls WHERE NOT live").fetchone()[0])


def test_ctrl_c_ends_tidily_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source = write_prompts(
        tmp_path / "in.parquet",
        prompt=[f"{i}?" for i in range(40)],
        response=[f"answer {i}." for i in range(40)],
    )

    def behave(body: dict[str, Any], n: int) -> Answer:
        answer = upper(body, n)
        return Answer(answer.content, delay=0.3)

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        flags = [
            "build-pairs",
            "--input",
            source,
            "--output",
            out,
            *asks(server, "--concurrency", 4),
        ]
        process = start(*flags)
        wait_for(lambda: len(server.asked) >= 10)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "run the same command again" in said
        assert "Traceback" not in said
        assert not out.exists()
        stopped = len(server.asked)
        assert stopped < 40
        build(source, out, *asks(server, "--concurrency", 4))
        assert len(server.asked) == 40, "a call in flight at Ctrl-C came home and was not used"
    assert [row["chosen"][0]["content"] for row in rows(out)] == [f"ANSWER {i}." for i in range(40)]


def test_ctrl_c_in_a_notebook_ends_the_run(tmp_path: Path) -> None:
    """Where a loop runs already, the calls are made in a thread: it must hear of the signal."""
    source = write_prompts(
        tmp_path / "in.parquet", prompt=[f"{i}?" for i in range(60)], response=["a."] * 60
    )
    code = (
        "import asyncio, sys, clair_apo\n"
        "async def cell():\n"
        "    clair_apo.build_pairs(input=sys.argv[1], output=sys.argv[2], reviser='m',\n"
        "                          reviser_url=sys.argv[3], concurrency=2)\n"
        "loop = asyncio.new_event_loop()\n"
        "try:\n"
        "    loop.run_until_complete(cell())\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    with Loopback(lambda body, n: Answer(marked("Better."), delay=0.4)) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(tmp_path / "p.parquet"), server.url],
            env=environment(),
        )
        wait_for(lambda: len(server.asked) >= 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        stopped = len(server.asked)
        assert stopped < 20
        build(source, tmp_path / "p.parquet", *asks(server, "--concurrency", 20))
        assert len(server.asked) == 60, "calls in flight came home and were not used"


def test_a_second_run_on_the_same_folder_is_refused(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    with Loopback(lambda body, n: Answer(marked("Better."), delay=2)) as server:
        first = start("build-pairs", "--input", three, "--output", out, *asks(server))
        wait_for(lambda: len(server.asked) == 3)
        second = clair("build-pairs", "--input", three, "--output", out, *asks(server))
        assert second.returncode == 1
        assert "in use by another run" in second.stderr
        assert first.wait(20) == 0


def test_changed_settings_are_refused_until_told_otherwise(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    with Loopback(upper) as server, Loopback(upper) as other:
        build(three, out, *asks(server))
        for flags, name in (
            (["--reviser", "n", "--reviser-url", server.url], "reviser: m before, n now"),
            (asks(other), "reviser-url"),
            (asks(server, "--temperature", 1), "sampling"),
            (asks(server, "--template", "answer-only"), "template"),
            (asks(server, "--minimality", "0..1"), "minimality"),
        ):
            refused = build(three, out, *flags, status=2)
            assert name in refused["stderr"]
        build(
            three,
            out,
            *asks(server),
            "--timeout",
            5,
            "--concurrency",
            3,
            "--retries",
            0,
            "--drop",
            "edit_ratio",
            "--limit",
            2,
        )
        assert len(server.asked) == 3
        build(three, out, *asks(other), "--continue")
        assert other.asked == []
        build(three, out, *asks(other), "--fresh")
        assert len(other.asked) == 3


def test_failed_rows_are_asked_again_where_the_way_failed(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    healed = False

    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        if not healed and "{task}: one" in said:
            return error(503, "busy")
        if not healed and "{task}: two" in said:
            return Answer(marked("Cut"), finish_reason="length")
        return upper(body, n)

    with Loopback(behave) as server:
        first = build(three, out, *asks(server), "--retries", 0)
        assert first["failures"] == {"http_5xx": 1, "truncated": 1}
        healed = True
        asked = len(server.asked)
        second = build(three, out, *asks(server), "--retries", 0)
        assert second["failures"] == {"truncated": 1}
        assert len(server.asked) == asked + 1
        third = build(three, out, *asks(server), "--retry-failed")
        assert third["failed"] == 0
        assert len(server.asked) == asked + 2
        assert third["calls"] == 6  # the one that was cut off was asked twice
    assert [row["chosen"][0]["content"] for row in rows(out)] == ["FIRST.", "SECOND.", "THIRD."]


def test_a_wrong_key_or_no_quota_stops_the_run(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    with Loopback(lambda body, n: error(401, "wrong key")) as server:
        stopped = build(three, out, *asks(server), status=3)
        assert "wrong key" in stopped["stderr"]
        assert len(server.asked) <= 3
        server.behave = lambda body, n: error(429, "pay first", "insufficient_quota")
        stopped = build(three, out, *asks(server), status=3)
        assert "quota" in stopped["stderr"]
        server.behave = upper
        assert build(three, out, *asks(server))["kept"] == 3


def test_limit_and_sample_pay_for_nothing_else(tmp_path: Path) -> None:
    prompts = [f"{i}?" for i in range(30)]
    source = write_prompts(tmp_path / "in.parquet", prompt=prompts, response=["a."] * 30)
    out = tmp_path / "p.parquet"
    with Loopback(upper) as server:
        assert build(source, out, *asks(server), "--limit", 5)["rows_in"] == 5
        some = build(source, out, *asks(server), "--sample", 10, "--seed", 3)
        drawn = [row["prompt"][0]["content"] for row in rows(out)]
        assert some["rows_in"] == 10 == len(drawn)
        assert drawn == sorted(drawn, key=prompts.index)
        build(source, out, *asks(server), "--sample", 10, "--seed", 3)
        assert [row["prompt"][0]["content"] for row in rows(out)] == drawn
        build(source, out, *asks(server))
        assert len(server.asked) == 30


def test_disk_full_stops_tidily_and_goes_on_later(three: Path, tmp_path: Path) -> None:
    """A ledger that may not grow any further: SQLite's own limit raises what a full disk does."""
    out = tmp_path / "p.parquet"
    with Loopback(lambda body, n: Answer(marked("x" * 300_000))) as server:
        code = (
            "import sqlite3, sys; connect = sqlite3.connect\n"
            "def full(*a, **k):\n"
            "    db = connect(*a, **k); db.execute('PRAGMA max_page_count=40'); return db\n"
            "sqlite3.connect = full\n"
            "from clair_apo.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "build-pairs",
                "--input",
                str(three),
                "--output",
                str(out),
                *map(str, asks(server)),
            ],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
        assert done.returncode == 1, done.stderr
        assert "the disk is full" in done.stderr
        assert not out.exists()
        assert build(three, out, *asks(server))["kept"] == 3
