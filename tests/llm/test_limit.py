"""The limit of calls in flight, against simulated servers: minutes of their time in a moment of ours."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from clair_apo.llm.limit import OPENING_SECONDS, Limit

# Seconds that a call takes, from the time, the calls in flight, its output tokens and a die.
Server = Callable[[float, int, int, random.Random], float]


@dataclass
class Trace:
    limits: list[tuple[float, int]] = field(default_factory=list)
    done: list[float] = field(default_factory=list)

    def limit(self, begin: float, end: float) -> float:
        found = [limit for at, limit in self.limits if begin <= at < end]
        return sum(found) / len(found)

    def rate(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at in self.done) / (end - begin)


def simulate(
    server: Server,
    seconds: float,
    most: int = 128,
    tokens: Callable[[random.Random], int] = lambda dice: 200,
    busy: bool = False,
) -> Trace:
    """Keeps as many calls in flight as the limit allows."""
    dice = random.Random(7)
    limit, trace = Limit(most), Trace()
    now, in_flight, number = 0.0, 0, 0
    flying: list[tuple[float, int, float, int]] = []
    while now < seconds:
        while in_flight < limit.at(now):
            in_flight += 1
            number += 1
            size = tokens(dice)
            heapq.heappush(flying, (now + server(now, in_flight, size, dice), number, now, size))
        step = now + 0.01 if limit.opening else flying[0][0]
        if flying[0][0] <= step:
            now, _, sent, size = heapq.heappop(flying)
            limit.succeeded(sent, now, in_flight, None if busy else now - sent, size)
            in_flight -= 1
            trace.done.append(now)
        else:
            now = step
        trace.limits.append((now, limit.at(now)))
    return trace


def noise(dice: random.Random, sigma: float = 0.2) -> float:
    return dice.lognormvariate(0, sigma)


def queue(capacity: int) -> Server:
    """So many at once, each for 0.2 s; whoever comes later waits in a queue."""
    return lambda now, calls, size, dice: 0.2 * max(1.0, calls / capacity) * noise(dice)


class Fifo:
    """The same with workers that take the calls one after the other."""

    def __init__(self, workers: int) -> None:
        self.free = [0.0] * workers

    def __call__(self, now: float, calls: int, size: int, dice: random.Random) -> float:
        end = max(now, heapq.heappop(self.free)) + 0.2 * noise(dice)
        heapq.heappush(self.free, end)
        return end - now


def test_it_opens_to_all_within_half_a_second() -> None:
    for most in (1, 20, 64, 1000):
        limit = Limit(most)
        assert limit.at(100.0) == min(most, 32)
        assert limit.at(100.0 + OPENING_SECONDS) == most
        assert OPENING_SECONDS < 0.5


@pytest.mark.parametrize("server", [queue(16), Fifo(16)])
def test_a_queue_is_left_without_a_loss_of_throughput(server: Server) -> None:
    trace = simulate(server, 60)
    assert trace.limit(1, 2) == 128
    assert trace.limit(20, 60) < 50
    assert trace.rate(20, 60) > 0.95 * 16 / 0.2


def test_a_server_that_does_more_with_more_calls_gets_them_all() -> None:
    """As vLLM batches: each call is slower among many, and all together are faster."""
    trace = simulate(lambda now, calls, size, dice: 0.2 * (1 + calls / 64) * noise(dice), 60, most=256)
    assert trace.limit(20, 60) > 250


def test_it_recovers_when_the_server_does() -> None:
    trace = simulate(lambda now, *rest: queue(16 if now < 30 else 500)(now, *rest), 60)
    assert trace.limit(20, 30) < 50
    assert trace.limit(45, 60) > 120


def test_a_server_that_turns_slow_for_good_is_not_starved() -> None:
    """Latency that does not hang on the calls in flight: fewer of them would be less done."""
    trace = simulate(lambda now, calls, size, dice: (0.1 if now < 10 else 1.0) * noise(dice), 60, most=64)
    assert trace.limit(30, 60) > 60


def test_long_replies_are_no_trouble() -> None:
    def long_later(dice: random.Random) -> int:
        return int(dice.lognormvariate(5, 0.8))

    trace = simulate(
        lambda now, calls, size, dice: (0.2 + 0.01 * size) * noise(dice), 100, tokens=long_later
    )
    assert trace.limit(20, 100) > 120


def test_chance_is_no_trouble() -> None:
    trace = simulate(lambda now, calls, size, dice: 0.5 * noise(dice, 0.6), 120)
    assert trace.limit(10, 120) > 115


def test_what_a_busy_client_measures_counts_nothing() -> None:
    assert simulate(queue(16), 30, busy=True).limit(1, 30) == 128


def test_trouble_shrinks_it_once_a_wave_and_success_brings_it_back() -> None:
    limit = Limit(64)
    limit.at(0.0)
    assert limit.at(1.0) == 64
    for _ in range(64):  # one wave: all of them were sent before the first came back
        limit.shrink(1.0, 2.0, 64)
    assert limit.at(2.0) == 44
    limit.shrink(2.5, 3.0, 44)  # and again without a single success: a storm
    assert limit.at(3.0) == 11
    limit.shrink(3.5, 4.0, 11)
    limit.shrink(4.5, 5.0, 2)
    assert limit.at(5.0) == 1
    now, rounds = 5.0, 0
    while limit.at(now) < 64:
        rounds += 1
        for _ in range(limit.at(now)):
            limit.succeeded(now, now + 1, limit.at(now), 1.0, 200)
        now += 1
        assert rounds < 20
    assert rounds > 5, "back in the server's face at once"


@pytest.mark.parametrize("most", range(2, 70))
def test_it_recovers_from_any_value(most: int) -> None:
    for shrinks in range(1, 10):
        limit = Limit(most)
        limit.at(0.0)
        now = 1.0
        for _ in range(shrinks):
            limit.shrink(now, now + 0.5, limit.at(now))
            now += 1
        for _ in range(60):
            for _ in range(limit.at(now)):
                limit.succeeded(now, now + 0.1, limit.at(now), 0.1, 200)
            now += 1
        assert limit.at(now) == most, f"{most} after {shrinks} shrinks"


def test_a_sudden_slowdown_is_a_queue_too() -> None:
    """From one moment to the next only 4 workers of 64 are left."""
    slow = Fifo(4)

    def server(now: float, calls: int, size: int, dice: random.Random) -> float:
        return 0.1 * noise(dice) if now < 10 else slow(now, calls, size, dice)

    trace = simulate(server, 90, most=64)
    assert trace.limit(5, 10) == 64
    assert trace.limit(40, 90) < 24
    assert trace.rate(40, 90) > 0.95 * 4 / 0.2


def test_it_is_never_below_one_nor_below_a_floor() -> None:
    limit = Limit(64)
    limit.at(0.0)
    for second in range(1, 20):
        limit.shrink(float(second), second + 0.5, 64, floor=4)
    assert limit.at(30.0) == 4
    for second in range(30, 50):
        limit.shrink(float(second), second + 0.5, 1)
    assert limit.at(60.0) == 1
