"""What calls cost, and a cap that is kept with calls in flight.

Each call reserves what it may cost at most before it goes out and settles for what it did cost. Where
the cap on its output is not known, the largest reply so far stands for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clair_apo.errors import StoppedEarly
from clair_apo.llm.ledger import Record, Spent
from clair_apo.llm.prices import Price

# Of a reply, while none is known: what most servers allow.
FIRST_OUTPUT = 4096
# Over the largest seen: a larger one may come.
OUTPUT_MARGIN = 1.5
# Over our own count of a prompt: other tokenizers than the one we count with.
INPUT_MARGIN = 1.1
FIRST_INPUT_RATIO = 1.2
# What a service's batch costs of the price of single calls: half, at OpenAI and at Anthropic.
BATCH_SHARE = 0.5


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
        saved = price.cost(item.batch_in, item.batch_out, item.batch_cached)
        total -= (1 - BATCH_SHARE) * saved
    return total


def cost_of_call(record: Record, price: Price) -> float:
    """USD for one call; 0 where it took no tokens that are known."""
    usd = price.cost(record.tokens_in or 0, record.tokens_out or 0, record.tokens_cached or 0)
    return usd * BATCH_SHARE if record.batched else usd


@dataclass(slots=True)
class _Seen:
    """What replies of one role have shown: how many, tokens in over our own count, the longest output."""

    replies: int = 0
    ratio: float | None = None
    output: int | None = None


@dataclass(slots=True, eq=False)
class Reserved:
    """A call that is on its way: our own count of its prompt, and its cap on output if it has one."""

    role: str
    price: Price
    ours: int
    output_cap: int | None


@dataclass(slots=True)
class Spending:
    """Keeps `cap` USD, of which `spent` are gone. To be used on one event loop."""

    cap: float
    spent: float
    _reserved: float = field(init=False, default=0.0)
    _in_flight: set[Reserved] = field(init=False, default_factory=set)
    _seen: dict[str, _Seen] = field(init=False, default_factory=dict)
    _waiting: list[asyncio.Future[None]] = field(init=False, default_factory=list)

    async def reserve(self, role: str, price: Price, ours: int, output_cap: int | None) -> Reserved:
        """Waits until the call is sure to stay under the cap. Raises StoppedEarly where it cannot."""
        call = Reserved(role, price, ours, output_cap)
        while not self._fits(call):
            if self._in_flight:  # what is in flight may turn out cheaper
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(future)
                await future
                continue
            if output_cap is None and role not in self._seen and self.spent < self.cap:
                break  # one call alone, to learn what they cost
            raise StoppedEarly(self._words(self.need(call), output_cap))
        self._in_flight.add(call)
        self._reserved += self.need(call)
        return call

    def remember(self, role: str, longest: int) -> None:
        """What earlier starts have shown of the replies of `role`."""
        self._seen[role] = _Seen(output=longest)

    def settle(self, call: Reserved, cost: float, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """The call is over and has cost this much (0: it was not answered)."""
        self._in_flight.discard(call)
        self._reserved -= self.need(call)
        self.spent += cost
        if tokens_in or tokens_out:
            seen = self._seen.setdefault(call.role, _Seen())
            before = (seen.ratio, seen.output)
            seen.replies += 1
            seen.ratio = max(seen.ratio or 0.0, tokens_in / max(call.ours, 1))
            seen.output = max(seen.output or 0, tokens_out)
            if before != (seen.ratio, seen.output):
                # The calls in flight may take as much as the dearest that has come by now.
                self._reserved = sum(self.need(other) for other in self._in_flight)
        if not self._in_flight:
            self._reserved = 0.0
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def need(self, call: Reserved, output: int | None = None) -> float:
        """USD that a call may cost at most; `output` in place of what replies so far suggest."""
        seen = self._seen.get(call.role, _Seen())
        ratio = FIRST_INPUT_RATIO if seen.ratio is None else seen.ratio * INPUT_MARGIN
        if call.output_cap is not None:
            output = call.output_cap
        elif output is None:
            output = FIRST_OUTPUT if seen.output is None else int(seen.output * OUTPUT_MARGIN) + 1
        return call.price.cost(int(call.ours * ratio) + 1, output)

    def _fits(self, call: Reserved) -> bool:
        room = self.cap - self.spent - self._reserved
        if self.need(call) > room:
            return False
        # Few replies say little about how long they can be: while they are few, so are the calls in flight.
        known = len(self._in_flight) < max(1, self._seen.get(call.role, _Seen()).replies)
        return call.output_cap is not None or known or self.need(call, FIRST_OUTPUT) <= room

    def _words(self, need: float, output_cap: int | None) -> str:
        why = f" with up to {output_cap:,} tokens of output" if output_cap is not None else ""
        return (
            f"--max-cost {self.cap:g}: {self.spent:.4f} USD are spent, and the next call may cost "
            f"{need:.4f}{why}. A higher --max-cost goes on from here."
        )
