"""The queue of an endpoint: who goes when, and who gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from clair_apo.llm.chat import Halted
from clair_apo.llm.pacing import Pacer, Patience, Turn, own_wait


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


async def turns(pacer: Pacer, number: int) -> list[Turn]:
    return [await pacer.turn() for _ in range(number)]


def test_no_more_than_the_limit_are_in_flight() -> None:
    async def scene() -> None:
        pacer = Pacer(3)
        first = await turns(pacer, 3)
        late = asyncio.create_task(pacer.turn())
        await asyncio.sleep(0.05)
        assert not late.done()
        assert pacer.in_flight == 3
        pacer.succeeded(first[0], 1, 1, 10)
        await asyncio.wait_for(late, 1)
        assert pacer.in_flight == 3
        pacer.close()

    run(scene())


def test_one_word_to_wait_holds_all_to_the_millisecond() -> None:
    async def scene() -> None:
        pacer = Pacer(8)
        first = await turns(pacer, 2)
        begun = time.monotonic()
        pacer.refused(first[0], Patience(6), 0.3)
        pacer.succeeded(first[1], 1, 1, 10)
        sent: list[float] = []

        async def call() -> None:
            turn = await pacer.turn()
            sent.append(turn.sent - begun)
            pacer.dropped(turn)

        await asyncio.gather(*(call() for _ in range(3)))
        assert all(0.3 <= at < 0.4 for at in sent)
        assert pacer.paused_for == 0.0
        pacer.close()

    run(scene())


def test_a_storm_spends_no_tries_and_a_single_refusal_does() -> None:
    async def scene() -> None:
        clock = [1000.0]
        pacer = Pacer(8, clock=lambda: clock[0])
        calls = [Patience(6) for _ in range(4)]
        for _ in range(6):  # all of them, six times over
            for call in calls:
                clock[0] += pacer.paused_for
                assert pacer.refused(await pacer.turn(), call, 1.0) is not None
        assert pacer.allowed == 1
        assert max(call.spent for call in calls) <= 1

        calm = Pacer(8)
        one = Patience(2)
        gave_up = []
        for _ in range(3):
            for _ in range(5):
                calm.succeeded(await calm.turn(), 1, 1, 10)
            gave_up.append(calm.refused(await calm.turn(), one, 0.001))
        assert gave_up == [0.0, 0.001, None], "all wait once; then the others go well, and it waits alone"
        assert calm.refused(await calm.turn(), Patience(0), 0.0) is None, "no retries means none"
        pacer.close()
        calm.close()

    run(scene())


def test_a_storm_that_does_not_end_ends_the_calls() -> None:
    async def scene() -> None:
        clock = [1000.0]
        pacer = Pacer(8, clock=lambda: clock[0])
        calls = [Patience(1) for _ in range(3)]
        given_up: list[float] = []
        while len(given_up) < 3:
            for call in calls:
                clock[0] += pacer.paused_for
                if pacer.refused(await pacer.turn(), call, None) is None:
                    given_up.append(clock[0] - 1000.0)
            assert clock[0] < 1100
        assert given_up[0] > 1.5  # three times the half second that one retry waits on its own
        pacer.close()

    run(scene())


def test_waits_grow_where_the_server_names_none() -> None:
    async def scene() -> None:
        clock = [0.0]
        pacer = Pacer(8, clock=lambda: clock[0])
        waits = []
        for _ in range(8):
            pacer.refused(await pacer.turn(), Patience(99), None)
            waits.append(pacer.paused_for)
            clock[0] += waits[-1]
        assert all(0.375 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits[:6]))
        assert waits[-1] <= 30.0
        pacer.close()

    run(scene())


def test_any_number_of_retries_is_one() -> None:
    async def scene() -> None:
        pacer = Pacer(8)
        assert pacer.refused(await pacer.turn(), Patience(5000), 0.001) is not None
        pacer.close()

    run(scene())
    assert own_wait(5000) <= 30.0


def test_budgets_a_minute_are_kept() -> None:
    async def scene() -> None:
        for pacer in (Pacer(64, rpm=1200), Pacer(64, tpm=120_000)):
            begun = time.monotonic()
            await asyncio.gather(*(pacer.turn(100) for _ in range(11)))
            assert 0.45 <= time.monotonic() - begun < 5
            pacer.close()

    run(scene())


def test_a_reply_that_was_longer_than_thought_is_made_up_for() -> None:
    async def scene() -> None:
        clock = [0.0]
        pacer = Pacer(64, tpm=6000, clock=lambda: clock[0])
        turn = await pacer.turn(100)
        pacer.succeeded(turn, 150, 150, 0)
        assert pacer._wait(Turn(100), clock[0]) == pytest.approx(3.0)
        pacer.close()

    run(scene())


def test_a_server_that_says_it_is_nearly_empty_is_not_pushed() -> None:
    async def scene() -> None:
        pacer = Pacer(64)
        turn = await pacer.turn()
        headers = {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "1.8s",
        }
        pacer.read(turn, headers)
        begun = time.monotonic()
        await asyncio.gather(*(pacer.turn() for _ in range(4)))
        assert 0.55 <= time.monotonic() - begun < 5  # one at once, three more at five a second
        pacer.close()

    run(scene())


def test_a_header_holds_nobody_for_more_than_a_minute() -> None:
    """A budget of a day that is used up, by a server that answers all the same."""

    async def scene() -> None:
        clock = [1000.0]
        pacer = Pacer(8, clock=lambda: clock[0])
        headers = {
            "x-ratelimit-limit-requests": "200",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "23h12m0s",
        }
        for _ in range(3):
            turn = await pacer.turn()
            pacer.read(turn, headers)
            pacer.succeeded(turn, 1, 1, 1)
            assert pacer._wait(Turn(1), clock[0]) == pytest.approx(60.0)
            clock[0] += 61
        pacer.close()

    run(scene())


def test_halt_sends_home_who_waits() -> None:
    async def scene() -> None:
        pacer = Pacer(1)
        turn = await pacer.turn()
        waiting = asyncio.create_task(pacer.turn())
        sleeping = asyncio.create_task(pacer.sleep(60))
        await asyncio.sleep(0.02)
        pacer.halt()
        for task in (waiting, sleeping):
            with pytest.raises(Halted):
                await task
        with pytest.raises(Halted):
            await pacer.turn()
        pacer.succeeded(turn, 1, 1, 1)  # the one in flight came home
        assert pacer.in_flight == 0

    run(scene())


def test_a_cancelled_call_leaves_its_place() -> None:
    async def scene() -> None:
        pacer = Pacer(1)
        turn = await pacer.turn()
        waiting = asyncio.create_task(pacer.turn())
        await asyncio.sleep(0.02)
        pacer.dropped(turn)  # the place is given ...
        waiting.cancel()  # ... to one that goes at the same moment
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(pacer.turn(), 1)
        assert pacer.in_flight == 1
        pacer.close()

    run(scene())


def test_a_busy_loop_is_not_held_against_the_server() -> None:
    """Half the time of each call is the client's own: the limit stays where it is."""

    async def scene() -> None:
        pacer = Pacer(16)

        async def call() -> None:
            turn = await pacer.turn()
            await asyncio.sleep(0.02)
            pacer.succeeded(turn, 10, 200, 0)

        async def work() -> None:
            for _ in range(40):
                await call()

        async def burn() -> None:
            await asyncio.sleep(0.3)
            for _ in range(12):
                time.sleep(0.1)
                await asyncio.sleep(0)

        await asyncio.gather(burn(), *(work() for _ in range(16)))
        assert pacer.allowed == 16
        pacer.close()

    run(scene())
