"""Runs against a server that misbehaves by a plan: each row ends as it should, whatever the others meet."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clair_apo.llm.endpoint import TIMEOUT_RETRIES
from cli import asks, build, dropped, failures, rows, write_prompts
from faults import ALL, MAX_TOKENS, REFUSALS, WAY, Fate, Misbehaving, asked_about, draw, revision
from loopback import Answer, Asked, Loopback, error, upper

ROWS = 150
# A row meets two faults at most that pass. A third one may befall it that nobody planned: a request that
# goes out as its connection closes, a time-out of a busy machine.
RETRIES = 3
# Some rows meet more trouble than a run may have in a row; that one stops it is another test's.
FLAGS = ["--timeout", 3, "--retries", RETRIES, "--max-tokens", MAX_TOKENS, "--max-consecutive-failures", 0]


def test_each_row_ends_as_the_plan_says(tmp_path: Path) -> None:
    """And twice the same; and what the way failed is made up for later, at no cost to the others."""
    source, plan = _rows(tmp_path, 1)
    assert {fate.then for fate in plan.values()} >= set(ALL) - set(REFUSALS)
    assert {fault for fate in plan.values() for fault in fate.first} == set(WAY)
    out, twin = tmp_path / "p.parquet", tmp_path / "q.parquet"
    with Loopback(Misbehaving(plan)) as server:
        flags = asks(server, *FLAGS)
        first = build(source, out, *flags)
        _check(out, first, plan, server.asked)

        server.behave = Misbehaving(plan)
        second = build(source, twin, *flags)
        assert _tables(twin) == _tables(out)
        assert {**_counts(second), "retries": 0} == {**_counts(first), "retries": 0}

        server.behave = Misbehaving(plan, healed=WAY)
        before, begun = _tables(out), len(server.asked)
        third = build(source, out, *flags)
        of_the_way = {prompt for prompt, fate in plan.items() if fate.of_the_way}
        assert _prompts(server.asked[begun:]) == of_the_way
        assert third["calls_from_ledger"] >= ROWS - len(of_the_way)
        healed = {p: Fate(f.first, "whole" if f.of_the_way else f.then) for p, f in plan.items()}
        _check(out, third, healed, [])
        assert _only(_tables(out), before["kept"]) == before["kept"]
        assert third["tokens_in"] == first["tokens_in"] + 10 * len(of_the_way)

        server.behave = Misbehaving(plan, healed=ALL)
        begun = len(server.asked)
        fourth = build(source, out, *flags, "--retry-failed")
        paid_failures = {prompt for prompt, fate in healed.items() if fate.kind}
        assert _prompts(server.asked[begun:]) == paid_failures
        assert (fourth["kept"], fourth["failed"]) == (ROWS, 0)
        assert _only(_tables(out), before["kept"]) == before["kept"]
        assert [p["prompt"][0]["content"] for p in rows(out)] == list(plan)
        assert fourth["tokens_in"] == third["tokens_in"] + 10 * len(paid_failures)


def test_each_row_ends_as_the_plan_says_when_streamed(tmp_path: Path) -> None:
    source, plan = _rows(tmp_path, 2)
    out = tmp_path / "p.parquet"
    with Loopback(Misbehaving(plan)) as server:
        summary = build(source, out, *asks(server, *FLAGS, "--stream"))
        _check(out, summary, plan, server.asked)
        assert all(item.body["stream"] for item in server.asked)


def test_429_in_every_form_for_ever(tmp_path: Path) -> None:
    """One try each, since a run waits longer and longer for several of those."""
    source, plan = _rows(tmp_path, 3, ends=["whole", *REFUSALS], rows=30, passing=0.0)
    plan = {prompt: Fate((), fate.then) for prompt, fate in plan.items()}
    out = tmp_path / "p.parquet"
    with Loopback(Misbehaving(plan)) as server:
        summary = build(source, out, *asks(server, "--retries", 0))
        assert len(server.asked) == len(plan)
        assert summary["failures"] == {"rate_limited": len(REFUSALS)}
        _check(out, summary, plan, server.asked, retries=0)
        server.behave = Misbehaving(plan, healed=WAY)
        assert build(source, out, *asks(server, "--retries", 0))["kept"] == len(plan)
        assert len(server.asked) == len(plan) + len(REFUSALS)


def test_a_storm_is_weathered_with_few_requests(tmp_path: Path) -> None:
    """Five seconds in which every call is told to come back in a second."""
    count, seconds, latency = 60, 5.0, 0.1
    source = _source(tmp_path, [f"Question {n}?" for n in range(count)])
    begun = 0.0

    def behave(body: dict[str, Any], n: int) -> Answer:
        nonlocal begun
        begun = begun or time.monotonic()
        if time.monotonic() - begun < seconds:
            answer = error(429, "slow down", retry_after="1")
            return Answer(status=429, body=answer.body, headers=answer.headers, delay=latency)
        return upper(body, n)

    with Loopback(behave) as server:
        summary = build(source, tmp_path / "p.parquet", *asks(server))
        refused = [item.at for item in server.asked if item.answer.status == 429]
    assert (summary["kept"], summary["failed"]) == (count, 0)
    assert len(server.asked) == count + len(refused)
    # All that was in flight when the first word came, then waves a second apart. The limit falls to 0.7 of
    # that wave, and to a quarter at each further one without a success: 42, 10, 2, and single probes.
    waves = [count, 0.7 * count, 0.7 * count / 4, 0.7 * count / 16, 1, 1]
    assert len(refused) <= sum(waves)
    later = [at for at in refused if at >= refused[0] + 2]
    assert len(later) <= sum(waves[2:]), "few probes a second once it is clear that it is a storm"


def _rows(
    folder: Path, seed: int, ends: list[str] | None = None, rows: int = ROWS, passing: float = 0.3
) -> tuple[Path, dict[str, Fate]]:
    plan = draw([f"Question {number}?" for number in range(rows)], seed, ends, passing)
    return _source(folder, list(plan)), plan


def _source(folder: Path, prompts: list[str]) -> Path:
    answers = [f"The answer to number {number} is a fair one." for number in range(len(prompts))]
    return write_prompts(folder / "in.parquet", prompt=prompts, response=answers)


def _check(
    out: Path, summary: dict[str, Any], plan: dict[str, Fate], asked: list[Asked], retries: int = RETRIES
) -> None:
    """That the tables and the summary are what `plan` says; with the requests of all starts in `asked`,
    that what they cost is counted."""
    kept, failed = rows(out), {row["prompt"]: row for row in failures(out)}
    prompts = [row["prompt"][0]["content"] for row in kept]
    assert dropped(out) == []
    assert sorted([*prompts, *failed]) == sorted(plan), "a row is lost or doubled"
    assert prompts == [prompt for prompt, fate in plan.items() if fate.kind is None]
    assert len({row["id"] for row in [*kept, *failed.values()]}) == len(plan)
    for row in kept:
        assert row["chosen"][0]["content"] == revision(row["rejected"][0]["content"])
        assert row["flags"] == []
        assert row["usage"]["calls"] == plan[row["prompt"][0]["content"]].calls
    kinds = {prompt: fate.kind for prompt, fate in plan.items() if fate.kind}
    assert {prompt: row["kind"] for prompt, row in failed.items()} == kinds
    for prompt, row in failed.items():
        if plan[prompt].then in WAY:
            most = min(retries, TIMEOUT_RETRIES) if row["kind"] == "timeout" else retries
            assert row["tries"] == 1 + most, row
    whole = ("kept", "unchanged", "filtered", "failed")
    assert summary["rows_in"] == len(plan) == sum(summary[name] for name in whole)
    assert (summary["kept"], summary["failed"]) == (len(kept), len(failed))
    assert sum(summary["failures"].values()) == len(failed)
    if asked:
        assert summary["calls"] == sum(fate.calls for fate in plan.values())
        # A request may be lost in a connection that closes, and the server never see it.
        assert summary["retries"] >= len(asked) - summary["calls"]
        assert summary["tokens_in"] == 10 * sum(fate.replies for fate in plan.values())


def _prompts(asked: list[Asked]) -> set[str]:
    return {asked_about(item.body)[0] for item in asked}


def _tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What must be the same whenever the same happens. How often a row is tried hangs on how the others
    fare at that moment, where it is refused, and on what nobody planned."""
    failed = [{**row, "tries": None} for row in failures(out)]
    kept = [{k: v for k, v in row.items() if k != "created_at"} for row in rows(out)]
    return {"kept": kept, "failed": failed, "dropped": dropped(out)}


def _only(tables: dict[str, list[dict[str, Any]]], of: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = {row["id"] for row in of}
    return [row for row in tables["kept"] if row["id"] in ids]


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    own = ("seconds", "settings", "calls_from_ledger")
    return {name: value for name, value in summary.items() if name not in own}
