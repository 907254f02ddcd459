"""`--dry-run`: what the calls would take, before one is sent.

Prompts are counted exactly; what comes back is a range. The lower end is one call each with short
replies, the upper end has long ones and a share of rows that are asked twice.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clair_apo.build.clair import SAMPLE, Clair
from clair_apo.build.options import BuildOptions
from clair_apo.build.parties import Parties
from clair_apo.build.progress import usd
from clair_apo.build.rows import Input, InputRow
from clair_apo.build.templates import MARKED
from clair_apo.llm import tokens
from clair_apo.llm.asking import output_cap
from clair_apo.llm.chat import WAY_FAILED, CallFailed, Message, Reply, Request, interpret
from clair_apo.llm.ledger import Reader
from clair_apo.llm.prices import Price

# Tokens of an answer that is still to be sampled.
SAMPLED = (64, 1024)
# Of a revision, as shares of the answer's tokens, and of the reasoning before it.
REVISED = (0.5, 1.5)
REASONING = (30, 600)
# Hidden reasoning, where it was asked for.
HIDDEN = 8192
# Rows that are asked twice, at the upper end: for a reply that cannot be read, or was cut off; with
# --minimality, all of them.
TWICE = 0.25


@dataclass(slots=True)
class _Range:
    low: float = 0
    high: float = 0

    def add(self, low: float, high: float) -> None:
        self.low += low
        self.high += high

    def json(self) -> dict[str, int]:
        return {"low": math.floor(self.low), "high": math.ceil(self.high)}


@dataclass(slots=True)
class _Side:
    """What is asked of one party."""

    calls: _Range = field(default_factory=_Range)
    tokens_in: _Range = field(default_factory=_Range)
    tokens_out: _Range = field(default_factory=_Range)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A call that is still to be made. `answer` is the text that it is about; None: not known yet."""

    stage: str
    role: str
    messages: Sequence[Message]
    answer: str | None


class _Enough(Exception):
    """The rest of a row's calls hangs on replies that are not there."""


def forecast(source: Input, method: Clair, parties: Parties, options: BuildOptions) -> dict[str, Any]:
    """The calls, tokens and USD that a run would take, as ranges; sends nothing and writes nothing."""
    sides = {role: _Side() for role in parties.roles}
    rows = unusable = on_file = 0
    with Reader(options.beside(".run")) as ledger:
        if options.fresh:
            ledger.close()
        for chunk in source.chunks():
            planned: list[_Planned] = []
            for row in chunk.rows:
                rows += 1
                if not isinstance(row, InputRow):
                    unusable += 1
                    continue
                calls, found = _plan(method, row, parties, ledger)
                planned += calls
                on_file += found
            for role, side in sides.items():
                _add_up(side, [call for call in planned if call.role == role], parties, role, options)
    cost = _cost(sides, parties)
    return {
        "dry_run": True,
        "rows_in": rows,
        "unusable": unusable,
        "calls": _sum(side.calls for side in sides.values()),
        "calls_from_ledger": on_file,
        "tokens_in": _sum(side.tokens_in for side in sides.values()),
        "tokens_out": _sum(side.tokens_out for side in sides.values()),
        "cost_usd": None if cost is None else {"low": cost.low, "high": cost.high},
        "roles": {
            role: {
                "model": parties.roles[role].name,
                "calls": side.calls.json(),
                "tokens_in": side.tokens_in.json(),
                "tokens_out": side.tokens_out.json(),
                "price": _price(parties, role),
            }
            for role, side in sides.items()
        },
    }


def as_text(result: dict[str, Any]) -> str:
    """The same for people."""
    bad = f", {result['unusable']:,} of them unusable" if result["unusable"] else ""
    lines = [f"{result['rows_in']:,} rows{bad}; nothing was sent"]
    if result["calls_from_ledger"]:
        lines.append(
            f"{result['calls_from_ledger']:,} calls are in the run folder already, and cost nothing"
        )
    shown = {role: side for role, side in result["roles"].items() if side["calls"]["high"]}
    table: list[tuple[str, ...]] = [("", "calls", "tokens in", "tokens out")]
    for role, side in shown.items():
        spans = (_span(side[name]) for name in ("calls", "tokens_in", "tokens_out"))
        table.append((f"{role} {side['model']}", *spans))
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append(f"{row[0]:{widths[0]}}  {'  '.join(cells)}".rstrip())
    for side in shown.values():
        if price := side["price"]:
            lines.append(f"{side['model']}: {Price(**price).words}")
        else:
            lines.append(f"{side['model']}: no price is known; --price IN,OUT gives one")
    cost = result["cost_usd"]
    if cost is not None:
        lines.append(f"cost: {usd(cost['low'])} to {usd(cost['high'])}")
    return "\n".join(lines)


def _plan(method: Clair, row: InputRow, parties: Parties, ledger: Reader) -> tuple[list[_Planned], int]:
    """The calls of a row that are not on file, as far as they can be told, and how many are."""
    planned: list[_Planned] = []
    found = 0
    answer = row.response

    async def ask(stage: str, role: str, messages: Sequence[Message], /) -> Reply:
        nonlocal found, answer
        party = parties.roles[role]
        key = Request(party.name, messages, party.params).key(stage, row.content)
        record = None if planned else ledger.get(key, row.repeat)
        if record is not None and record.kind not in WAY_FAILED:
            found += 1
            if record.kind is not None:
                raise CallFailed(record.kind, "")
            reply = interpret(record.raw or "")
            answer = reply.text if stage == SAMPLE else answer
            return reply
        planned.append(_Planned(stage, role, messages, answer))
        if stage != SAMPLE:
            raise _Enough
        return Reply("?", None, None, None, None)

    with contextlib.suppress(StopIteration, CallFailed, _Enough):
        method(row, ask).send(None)
    return planned, found


def _add_up(side: _Side, calls: list[_Planned], parties: Parties, role: str, options: BuildOptions) -> None:
    party = parties.roles[role]
    cap = output_cap(party.params) or math.inf
    asked = tokens.count_requests([call.messages for call in calls], party.name)
    answers = tokens.count_texts([call.answer or "" for call in calls], party.name)
    hidden = HIDDEN if "reasoning_effort" in party.params else 0
    sample_cap = output_cap(parties.model.params) if parties.model else None
    sampled = (SAMPLED[0], min(SAMPLED[1], sample_cap or SAMPLED[1]))
    for call, prompt, known in zip(calls, asked, answers, strict=True):
        if call.stage == SAMPLE:
            side.calls.add(1, 1)
            side.tokens_in.add(prompt, prompt)
            side.tokens_out.add(min(sampled[0], cap), min(sampled[1] + hidden, cap))
            continue
        low, high = (known, known) if call.answer is not None else sampled
        reasoning = REASONING if parties.template.reply == MARKED else (0, 0)
        out_low = min(REVISED[0] * low + reasoning[0], cap)
        out_high = min(REVISED[1] * high + reasoning[1] + hidden, cap)
        in_low, in_high = (prompt, prompt) if call.answer is not None else (prompt + low, prompt + high)
        again = 1.0 if options.minimality else TWICE
        side.calls.add(1, 1 + again)
        side.tokens_in.add(in_low, in_high + again * (in_high + out_high))
        side.tokens_out.add(out_low, out_high * (1 + again))


def _cost(sides: dict[str, _Side], parties: Parties) -> _Range | None:
    total = _Range()
    for role, side in sides.items():
        price = parties.roles[role].price
        if price is None:
            if side.calls.high:
                return None
            continue
        total.add(
            price.cost(math.floor(side.tokens_in.low), math.floor(side.tokens_out.low)),
            price.cost(math.ceil(side.tokens_in.high), math.ceil(side.tokens_out.high)),
        )
    return total


def _price(parties: Parties, role: str) -> dict[str, Any] | None:
    price = parties.roles[role].price
    return None if price is None else {"input": price.input, "output": price.output, "source": price.source}


def _sum(ranges: Any) -> dict[str, int]:
    total = _Range()
    for item in ranges:
        total.add(item.low, item.high)
    return total.json()


def _span(span: dict[str, int]) -> str:
    low, high = span["low"], span["high"]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
