"""Kills build-pairs at random moments, again and again, and checks that nothing was paid twice or lost.

    python benchmarks/soak.py --kills 1000 --seed 1 --rows 12000

The server is on loopback and misbehaves by a plan of faults that pass (`tests/faults.py`). Most kills
fall while calls are in flight, some anywhere from the start of the process on; once all rows are answered
they fall while the ledger is read and the tables are written. In the end the run is left to finish.

Checked: no reply that the server had sent 0.2 s before a kill was asked for again, the table equals that
of an undisturbed run, every row and call is counted once, and no start ends in any other way. The exit
status is 1 where that does not hold; the folder with the run is then kept.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from cli import asks, start, write_prompts
from faults import HARMLESS, MAX_TOKENS, WAY, Fate, Misbehaving, asked_about, draw
from loopback import Answer, Asked, Loopback

ON_DISK_SECONDS = 0.2  # by then a reply that arrived is on disk
ROWS_A_KILL = 6  # somewhat fewer than are answered between two kills, so that the last ones fall later
# A reply that drips for half a second would hardly ever come before the next kill.
ENDS = [end for end in HARMLESS if end != "drips"]
FAULTY = 0.03  # share of the rows that meet faults on the way
LATENCY = (0.05, 0.15)
CONCURRENCY = 4
KILL_AFTER = 0.6  # seconds behind the first new request, at most
BLIND_SHARE = 0.15  # of kills: at any moment since the start, with or without a request
BLIND_SECONDS = 1.2  # until a start came to its end: then as long as that took
STILL_SECONDS = 120.0  # no start is silent for so long
FLAGS = ["--timeout", 2, "--max-tokens", MAX_TOKENS, "--max-consecutive-failures", 0, "--quiet", "--json"]


@dataclass
class Soak:
    """One run with its kills. Times are those of `time.monotonic`."""

    server: Loopback
    source: Path
    out: Path
    dice: random.Random
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)  # when each start was killed, or had ended
    trouble: list[str] = field(default_factory=list)
    in_calls: int = 0  # kills with calls in flight
    finished: int = 0  # starts that came to their end first
    blind: float = BLIND_SECONDS

    def flags(self, concurrency: int) -> list[object]:
        flags = ["build-pairs", "--input", self.source, "--output", self.out, *FLAGS]
        return [*flags, *asks(self.server, "--concurrency", concurrency)]

    def kill_one(self) -> None:
        """Starts the command and kills it."""
        asked = len(self.server.asked)
        self.starts.append(time.monotonic())
        process = start(*self.flags(CONCURRENCY))
        if self.finished or self.dice.random() < BLIND_SHARE:
            _sleep(self.dice.uniform(0, self.blind), process)
        else:
            while len(self.server.asked) == asked and process.poll() is None:
                if self._stands_still():
                    self.trouble.append(f"start {len(self.starts)} did nothing for {STILL_SECONDS:g} s")
                    break
                time.sleep(0.002)
            _sleep(self.dice.uniform(0, KILL_AFTER), process)
        self.ends.append(time.monotonic())
        process.kill()
        _, said = process.communicate()
        if process.returncode == 0:
            self.finished += 1
            self.blind = self.ends[-1] - self.starts[-1]
        elif process.returncode != -9:
            self.trouble.append(f"start {len(self.starts)} ended with {process.returncode}: {said[-500:]}")
        elif len(self.server.asked) > asked:
            self.in_calls += 1
        if self.out.exists():
            pq.read_table(self.out)  # whole or not there

    def finish(self, concurrency: int = 64) -> dict[str, Any]:
        """Lets the command come to its end. Returns its summary."""
        self.starts.append(time.monotonic())
        process = start(*self.flags(concurrency))
        while True:
            try:
                told, said = process.communicate(timeout=5)
                break
            except subprocess.TimeoutExpired:
                if self._stands_still():
                    process.kill()
        self.ends.append(time.monotonic())
        if process.returncode != 0:
            raise SystemExit(
                f"VIOLATED: start {len(self.starts)} ended with {process.returncode} after "
                f"{len(self.server.asked):,} requests: {said[-500:]}"
            )
        summary: dict[str, Any] = json.loads(told)
        return summary

    def _stands_still(self) -> bool:
        """Whether nothing has come from the start under way for long."""
        last = self.server.asked[-1].at if self.server.asked else 0.0
        return time.monotonic() - max(last, self.starts[-1]) > STILL_SECONDS

    def paid_again(self) -> list[str]:
        """Requests that were made again although their reply must have been on disk."""
        found = []
        asked: defaultdict[str, list[Asked]] = defaultdict(list)
        for item in self.server.asked:
            asked[json.dumps(item.body, sort_keys=True)].append(item)
        for items in asked.values():
            for before, after in itertools.pairwise(items):
                if not _is_reply(before) or before.replied is None:
                    continue
                first, second = (bisect.bisect(self.starts, item.at) - 1 for item in (before, after))
                early = before.replied < self.ends[first] - ON_DISK_SECONDS
                if first == second or early:
                    ago = self.ends[first] - before.replied
                    prompt = asked_about(before.body)[0]
                    found.append(f"{prompt} was paid in start {first + 1}, {ago:.3f} s before its end")
        return found


def _sleep(seconds: float, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(min(0.01, max(0.0, end - time.monotonic())))


def _is_reply(item: Asked) -> bool:
    return item.answer.status == 200 and item.answer.whole


class _Slowly:
    """A plan whose answers take their time."""

    def __init__(self, plan: Mapping[str, Fate], seed: int) -> None:
        self._behave = Misbehaving(plan)
        self._dice = random.Random(seed)

    def __call__(self, body: dict[str, Any], n: int) -> Answer:
        answer = self._behave(body, n)
        return answer if answer.delay else replace(answer, delay=self._dice.uniform(*LATENCY))


def check(soak: Soak, calm: Path, summary: Mapping[str, Any], plan: Mapping[str, Fate]) -> list[str]:
    """What is wrong with the end of a run; nothing is said where all is well."""
    wrong = [*soak.trouble, *soak.paid_again()]
    for ending in ("", ".dropped", ".failures"):
        ours, theirs = (
            pq.read_table(path.with_name(f"{path.stem}{ending}.parquet")) for path in (soak.out, calm)
        )
        if "created_at" in ours.column_names:
            ours, theirs = ours.drop(["created_at"]), theirs.drop(["created_at"])
        if not ours.equals(theirs):
            wrong.append(f"the table {soak.out.stem}{ending}.parquet is not that of an undisturbed run")
    calls = sum(fate.calls for fate in plan.values())
    expected = {
        "rows_in": len(plan),
        "kept": len(plan),
        "unchanged": 0,
        "filtered": 0,
        "failed": 0,
        "calls": calls,
        "tokens_in": 10 * calls,
        "tokens_out": 5 * calls,
    }
    wrong += [f"{k} is {summary[k]}, not {v}" for k, v in expected.items() if summary[k] != v]
    with sqlite3.connect(soak.out.with_suffix(".run") / "ledger.sqlite") as db:
        state = db.execute("PRAGMA integrity_check").fetchone()[0]
        live, doubled = db.execute("SELECT sum(live), sum(NOT live) FROM calls").fetchone()
    if (state, live, doubled) != ("ok", calls, 0):
        wrong.append(f"the ledger: {state}, {live} calls that stand, {doubled} that do not")
    left = sorted(path.name for path in soak.out.parent.rglob("*") if ".tmp" in path.name)
    return wrong + [f"left behind: {name}" for name in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, help=f"default: {ROWS_A_KILL} a kill")
    args = parser.parse_args()
    count = args.rows or ROWS_A_KILL * args.kills
    plan = draw([f"Question {n}?" for n in range(count)], args.seed, ENDS, passing=FAULTY)
    faults = sum(len(fate.first) for fate in plan.values())
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    source = write_prompts(
        folder / "in.parquet",
        prompt=list(plan),
        response=[f"The answer to number {n} is a fair one." for n in range(count)],
    )
    begun = time.monotonic()
    with Loopback(_Slowly(plan, args.seed)) as server:
        print(f"{count:,} rows, {faults:,} faults of {len(WAY)} kinds on the way, seed {args.seed}")
        calm = folder / "calm.parquet"
        Soak(server, source, calm, random.Random(args.seed)).finish()
        print(f"undisturbed: {len(server.asked):,} requests, {time.monotonic() - begun:.0f} s", flush=True)
        server.asked.clear()
        server.behave = _Slowly(plan, args.seed)
        soak = Soak(server, source, folder / "soak.parquet", random.Random(args.seed))
        for number in range(1, args.kills + 1):
            soak.kill_one()
            if number % max(1, args.kills // 10) == 0:
                print(
                    f"{number:,} kills, {soak.in_calls:,} of them between calls and {soak.finished:,} too "
                    f"late; {len(server.asked):,} requests, {len(soak.paid_again())} paid again; "
                    f"{time.monotonic() - begun:.0f} s",
                    flush=True,
                )
        summary = soak.finish()
        wrong = check(soak, calm, summary, plan)
        lost = len(server.asked) - summary["calls"] - faults
    print(f"{lost:,} requests more than an undisturbed run needs: what was in flight at a kill")
    if wrong:
        print(f"VIOLATED, {len(wrong)} times; the run is in {folder}", *wrong[:20], sep="\n  ")
        return 1
    shutil.rmtree(folder)
    print(f"held: {args.kills:,} kills, nothing paid twice, the table is that of an undisturbed run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
