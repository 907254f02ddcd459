"""What calls cost, and a cap that holds with calls in flight."""

from __future__ import annotations

import asyncio
import random

import pytest

from clair_apo.errors import StoppedEarly
from clair_apo.llm.ledger import Spent
from clair_apo.llm.prices import Price
from clair_apo.llm.spending import Spending, cost_of

PRICE = Price(10.0, 30.0)


def test_costs_add_up_by_model_and_are_unknown_where_a_price_is() -> None:
    spent = [Spent("reviser", "a", 3, 0, 1000, 0, 500), Spent("model", "b", 1, 0, 100, 0, 10)]
    prices = {("reviser", "a"): PRICE, ("model", "b"): Price(0, 0)}
    assert cost_of(spent, prices) == pytest.approx(0.025)
    assert cost_of(spent, {("reviser", "a"): PRICE}) is None
    assert cost_of([Spent("model", "b", 5)], {}) == 0.0, "calls that took no tokens have no price"


@pytest.mark.parametrize("output_cap", [400, None])
@pytest.mark.parametrize("seed", range(5))
def test_the_cap_holds_with_many_calls_in_flight(output_cap: int | None, seed: int) -> None:
    dice = random.Random(seed)
    spending = Spending(1.0, 0.0)
    made = 0

    async def call() -> None:
        nonlocal made
        ours = dice.randint(500, 1500)
        reserved = await spending.reserve("reviser", PRICE, ours, output_cap)
        made += 1
        await asyncio.sleep(dice.uniform(0, 0.002))
        used = int(ours * dice.uniform(0.9, 1.1)), dice.randint(40, 400)
        spending.settle(reserved, PRICE.cost(*used), *used)

    async def worker() -> StoppedEarly | None:
        try:
            while True:
                await call()
        except StoppedEarly as stop:
            return stop

    async def all_of_them() -> list[StoppedEarly | None]:
        return await asyncio.gather(*(worker() for _ in range(32)))

    stops = asyncio.run(all_of_them())
    assert all(stop is not None and "--max-cost 1" in str(stop) for stop in stops)
    assert 0.9 < spending.spent <= 1.0
    assert made > 40


def test_a_call_that_failed_gives_back_what_it_held() -> None:
    async def scene() -> None:
        spending = Spending(0.05, 0.0)
        first = await spending.reserve("reviser", PRICE, 1000, 1000)
        waiting = asyncio.create_task(spending.reserve("reviser", PRICE, 1000, 1000))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        spending.settle(first, 0.0)
        second = await asyncio.wait_for(waiting, 1)
        spending.settle(second, 0.04, 1000, 1000)
        with pytest.raises(StoppedEarly, match=r"0\.0400 USD are spent"):
            await spending.reserve("reviser", PRICE, 1000, 1000)

    asyncio.run(scene())


def test_without_a_cap_on_output_one_call_shows_what_they_cost() -> None:
    async def scene() -> None:
        spending = Spending(0.05, 0.0)  # less than the longest reply that there could be
        first = await spending.reserve("reviser", PRICE, 100, None)
        others = [asyncio.create_task(spending.reserve("reviser", PRICE, 100, None)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in others), "one alone, to learn"
        spending.settle(first, PRICE.cost(100, 50), 100, 50)
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in others) == 1, "as many as have come back"
        going = next(task for task in others if task.done()).result()
        spending.settle(going, PRICE.cost(100, 60), 100, 60)
        await asyncio.wait_for(asyncio.gather(*others), 1)

    asyncio.run(scene())
