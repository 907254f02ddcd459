"""What calls cost, and a cap that is kept with calls in flight.

Each call reserves what it may cost at most before it goes out and settles for what it did cost. Where
the cap on its output is not known, the largest reply so far stands for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clair_apo.errors import StoppedEarly
from clair_apo.llm.ledger import Spent
from clair_apo.llm.prices import Price

# Of a reply, while none is known: what most servers allow.
FIRST_OUTPUT = 4096
# Over the largest seen: a larger one may come.
OUTPUT_MARGIN = 1.5
# Over our own count of a prompt: other tokenizers than the one we count with.
INPUT_MARGIN = 1.1
FIRST_INPUT_RATIO = 1.2


def cost_of(spent: Iterable[Spent], prices: Mapping[tuple[str, str], Price]) -> float | None:
    """USD for calls by (role, model); None where a price is not known of what took tokens."""
    total = 0.0
    for item in spent:
        price = prices.get((item.role, item.model))
        if price is None:
            if item.tokens_in or item.tokens_out:
                return None
            continue
        total += price.cost(item.tokens_in, item.tokens_out, item.tokens_cached)
    return total


@dataclass(slots=True)
class _Seen:
    """What replies of one role have shown: tokens in over our own count, and the longest output."""

    ratio: float | None = None
    output: int | None = None


@dataclass(slots=True, eq=False)
class Reserved:
    """What one call holds of the cap. `ours` is our own count of its prompt."""

    role: str
    amount: float
    ours: int


@dataclass(slots=True)
class Spending:
    """Keeps `cap` USD, of which `spent` are gone. To be used on one event loop."""

    cap: float
    spent: float
    _reserved: float = field(init=False, default=0.0)
    _in_flight: int = field(init=False, default=0)
    _seen: dict[str, _Seen] = field(init=False, default_factory=dict)
    _waiting: list[asyncio.Future[None]] = field(init=False, default_factory=list)

    async def reserve(self, role: str, price: Price, ours: int, output_cap: int | None) -> Reserved:
        """Waits until the call is sure to stay under the cap. Raises StoppedEarly where it cannot."""
        while True:
            need = self._need(role, price, ours, output_cap)
            if self.spent + self._reserved + need <= self.cap:
                break
            if self._in_flight:  # what is in flight may turn out cheaper
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(future)
                await future
                continue
            if output_cap is None and role not in self._seen and self.spent < self.cap:
                break  # one call alone, to learn what they cost
            raise StoppedEarly(self._words(need, output_cap))
        self._reserved += need
        self._in_flight += 1
        return Reserved(role, need, ours)

    def settle(self, reserved: Reserved, cost: float, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """The call is over and has cost this much (0: it was not answered)."""
        self._in_flight -= 1
        self._reserved = self._reserved - reserved.amount if self._in_flight else 0.0
        self.spent += cost
        if tokens_in or tokens_out:
            seen = self._seen.setdefault(reserved.role, _Seen())
            seen.ratio = max(seen.ratio or 0.0, tokens_in / max(reserved.ours, 1))
            seen.output = max(seen.output or 0, tokens_out)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _need(self, role: str, price: Price, ours: int, output_cap: int | None) -> float:
        seen = self._seen.get(role, _Seen())
        ratio = FIRST_INPUT_RATIO if seen.ratio is None else seen.ratio * INPUT_MARGIN
        output = output_cap
        if output is None:
            output = FIRST_OUTPUT if seen.output is None else int(seen.output * OUTPUT_MARGIN) + 1
        return price.cost(int(ours * ratio) + 1, output)

    def _words(self, need: float, output_cap: int | None) -> str:
        why = f" with up to {output_cap:,} tokens of output" if output_cap is not None else ""
        return (
            f"--max-cost {self.cap:g}: {self.spent:.4f} USD are spent, and the next call may cost "
            f"{need:.4f}{why}. A higher --max-cost goes on from here."
        )
