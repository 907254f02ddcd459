"""`--dry-run`: what the calls would take, before one is sent.

The methods run as they will, and where a reply is not on file they get one that stands for it. Prompts are
counted exactly; what comes back is a range. The lower end is one call each with short replies, the upper
end has long ones and a share of calls that are made twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clair_apo.build.calls import finished
from clair_apo.build.edits import takes_edits
from clair_apo.build.judge_templates import PAIRWISE
from clair_apo.build.methods import Method
from clair_apo.build.options import BuildOptions
from clair_apo.build.parties import Parties
from clair_apo.build.progress import usd
from clair_apo.build.roles import JUDGING, MODEL, REVISE
from clair_apo.build.rows import Input, InputRow
from clair_apo.build.talk import Ask, Recipe, Talk
from clair_apo.build.templates import MARKED
from clair_apo.llm import tokens
from clair_apo.llm.asking import Party, drawn, output_cap
from clair_apo.llm.chat import WAY_FAILED, CallFailed, Message, Reply, Request, interpret
from clair_apo.llm.ledger import Reader
from clair_apo.llm.prices import Price
from clair_apo.llm.spending import BATCH_SHARE

# Tokens of an answer that is still to be sampled.
SAMPLED = (64, 1024)
# Of a revision, as shares of the answer's tokens, and of the reasoning before it.
REVISED = (0.5, 1.5)
REASONING = (30, 600)
# Of edits, as shares of the answer's tokens.
EDITED = (0.05, 1.0)
# Of a judge's reasons and verdict.
JUDGED = (3, 500)
# Hidden reasoning, where it was asked for.
HIDDEN = 8192
# Calls that are made twice, at the upper end: for a reply that cannot be read, or was cut off; with
# --minimality, all of those to the reviser.
TWICE = 0.25
# Judge's calls about answers to come that are not made, at the lower end: the two may be the same. And of
# several revisions, the first may be verified.
SAME = 0.25


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
    """A call that is still to be made. `about` are the answers in its messages."""

    method: str
    stage: str
    role: str
    messages: Sequence[Message]
    about: Sequence[str]


@dataclass(slots=True)
class _Stand:
    """Texts that stand for replies to come: each is its own, and is the revision of another text, or (None)
    a fresh answer."""

    texts: dict[str, str | None] = field(default_factory=dict)

    def new(self, of: str | None) -> str:
        text = f"?{len(self.texts)}"
        self.texts[text] = of
        return text

    def depth(self, text: str) -> int:
        """How many revisions to come lie between a text and one that is there, or sampled."""
        found = 0
        while (of := self.texts.get(text)) is not None:
            text, found = of, found + 1
        return found


def forecast(
    source: Input, methods: Sequence[Method], recipe: Recipe, parties: Parties, options: BuildOptions
) -> dict[str, Any]:
    """The calls, tokens and USD that a run would take, as ranges; sends nothing and writes nothing. What
    several methods share counts for the first of them."""
    sides = {role: _Side() for role in parties.roles}
    by_method = {method.name: _Range() for method in methods}
    rows = unusable = on_file = 0
    with Reader(options.beside(".run")) as ledger:
        if options.fresh:
            ledger.close()
        for chunk in source.chunks():
            planned: list[_Planned] = []
            stand = _Stand()
            for row in chunk.rows:
                rows += 1
                if not isinstance(row, InputRow):
                    unusable += 1
                    continue
                planning = _Planning(row, recipe, parties.roles, ledger, stand)
                for method in methods:
                    planning.run(method)
                planned += planning.planned
                on_file += planning.found
            for call in planned:
                by_method[call.method].add(*_times(call, recipe, stand))
            for role, side in sides.items():
                _add_up(
                    side,
                    [call for call in planned if call.role == role],
                    recipe,
                    parties.roles,
                    role,
                    stand,
                )
    cost = _cost(sides, parties)
    in_batches = options.batch is not None and options.batch_dir is None
    if cost is not None and in_batches:
        cost = _Range(cost.low * BATCH_SHARE, cost.high * BATCH_SHARE)
    return {
        "dry_run": True,
        "rows_in": rows,
        "unusable": unusable,
        "calls": _sum(side.calls for side in sides.values()),
        "calls_from_ledger": on_file,
        "tokens_in": _sum(side.tokens_in for side in sides.values()),
        "tokens_out": _sum(side.tokens_out for side in sides.values()),
        "cost_usd": None if cost is None else {"low": cost.low, "high": cost.high},
        "in_batches": in_batches,
        "methods": {name: {"calls": calls.json()} for name, calls in by_method.items()},
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
    if len(result["methods"]) > 1:
        calls = (f"{name} {_span(side['calls'])}" for name, side in result["methods"].items())
        lines.append(f"calls by method: {', '.join(calls)}")
    prices = (
        f"{side['model']}: "
        + (Price(**side["price"]).words if side["price"] else "no price is known; --price IN,OUT gives one")
        for side in shown.values()
    )
    lines += dict.fromkeys(prices)
    cost = result["cost_usd"]
    if cost is not None:
        half = ", in batches at half price" if result["in_batches"] else ""
        lines.append(f"cost: {usd(cost['low'])} to {usd(cost['high'])}{half}")
    return "\n".join(lines)


class _Planning:
    """The calls of one row that are not on file, as far as they can be told, and how many are."""

    def __init__(
        self, row: InputRow, recipe: Recipe, roles: dict[str, Party], ledger: Reader, stand: _Stand
    ) -> None:
        self.planned: list[_Planned] = []
        self.found = 0
        self._row = row
        self._recipe = recipe
        self._roles = roles
        self._ledger = ledger
        self._stand = stand
        self._known: dict[bytes, Reply] = {}
        self._stands_in = False
        self._method = ""

    def run(self, method: Method) -> None:
        """Goes through the calls of a method."""
        self._method = method.name
        before = len(self.planned)
        talk = Talk(self._recipe, self._row, self._answering)

        async def through() -> None:
            await finished(await method(self._row, talk), talk)

        try:
            through().send(None)
        except (StopIteration, CallFailed):
            pass
        except Exception:
            if len(self.planned) == before:
                raise
            # A method of the user's own may find nothing to read in what stands for a reply.

    async def _answering(self, ask: Ask) -> Reply:
        party = self._roles[ask.role]
        request = Request(party.name, ask.messages, party.params)
        key = request.key(drawn(ask.stage, ask.draw), self._row.content)
        if key in self._known:  # another method asks the same
            return self._known[key]
        record = self._ledger.get(key, self._row.repeat)
        if record is not None and record.kind not in WAY_FAILED:
            self.found += 1
            self._stands_in = False
            if record.kind is not None:
                raise CallFailed(record.kind, "")
            self._known[key] = interpret(record.raw or "")
            return self._known[key]
        if ask.again and self._stands_in:  # the share of calls that are made twice covers it
            raise CallFailed("empty", "")
        self._stands_in = True
        self.planned.append(_Planned(self._method, ask.stage, ask.role, ask.messages, ask.about))
        self._known[key] = Reply(self._standing(ask.stage, ask.about), None, None, None, None)
        return self._known[key]

    def _standing(self, stage: str, about: Sequence[str]) -> str:
        """A text that can be read as the reply is to be."""
        if stage == JUDGING and self._recipe.judge_template is not None:
            return self._verdict(self._recipe.judge_template.form, about)
        if stage == REVISE and self._recipe.template is not None and about:
            template, text = self._recipe.template, self._stand.new(about[0])
            if self._recipe.edits_template is not None and takes_edits(about[0]):
                return f"<<<<<<< SEARCH\n{about[0]}\n=======\n{text}\n>>>>>>> REPLACE"
            return f"{{{template.answer_marker}}}\n{text}" if template.reply == MARKED else text
        return self._stand.new(None)

    def _verdict(self, form: str, about: Sequence[str]) -> str:
        """That a revision to come is better than what it is of, so that all rounds are gone through."""
        depth = self._stand.depth(about[0])
        if form != PAIRWISE:
            return f"[[{min(5 + depth, 10)}]]"
        other = self._stand.depth(about[1])
        return "[[C]]" if depth == other else "[[A]]" if depth > other else "[[B]]"


def _times(call: _Planned, recipe: Recipe, stand: _Stand) -> tuple[float, float]:
    """How often a call is made, at the lower and at the upper end."""
    depth = max((stand.depth(text) for text in call.about), default=0)
    if call.stage == REVISE:  # a later round may not come to pass
        return 0 if depth else 1, 2 if recipe.minimality else 1 + TWICE
    if call.stage == JUDGING:
        to_come = any(text in stand.texts for text in call.about)
        least = 0 if depth > 1 else 1 - SAME if to_come else 1
        # Those that are there are planned one by one, one to come stands for all of them.
        return least / recipe.best_of, (1 + TWICE) * (recipe.best_of if depth else 1)
    return 1, 1


def _add_up(
    side: _Side, calls: list[_Planned], recipe: Recipe, roles: dict[str, Party], role: str, stand: _Stand
) -> None:
    party = roles[role]
    cap = output_cap(party.params) or math.inf
    hidden = HIDDEN if party.params.keys() & {"reasoning_effort", "thinking"} else 0
    sample_cap = output_cap(roles[MODEL].params) if MODEL in roles else None
    sampled = (SAMPLED[0], min(SAMPLED[1], sample_cap or SAMPLED[1]))
    prompts = tokens.count_requests([call.messages for call in calls], party.name)
    known = list({text: None for call in calls for text in _known(call.about, stand)})
    counts = dict(zip(known, tokens.count_texts(known, party.name), strict=True))

    def size(text: str) -> tuple[float, float]:
        """The tokens of an answer, known or to come."""
        if text not in stand.texts:
            return counts[text], counts[text]
        if (of := stand.texts[text]) is None:
            return sampled
        low, high = size(of)
        return REVISED[0] * low, REVISED[1] * high

    reasoned = recipe.edits_template or (recipe.template and recipe.template.reply == MARKED)
    reasoning = REASONING if reasoned else (0, 0)
    for call, prompt in zip(calls, prompts, strict=True):
        sizes = [size(text) for text in call.about]
        to_come = [size(text) for text in call.about if text in stand.texts]
        in_low, in_high = (prompt + sum(each[end] for each in to_come) for end in (0, 1))
        if call.stage == REVISE and sizes:
            low, high = EDITED if recipe.edits_template else REVISED
            out = low * sizes[0][0] + reasoning[0], high * sizes[0][1] + reasoning[1]
        else:
            out = JUDGED if call.stage == JUDGING else sampled
        out_low, out_high = min(out[0], cap), min(out[1] + hidden, cap)
        least, most = _times(call, recipe, stand)
        side.calls.add(least, most)
        side.tokens_in.add(least * in_low, in_high + (most - 1) * (in_high + out_high))
        side.tokens_out.add(least * out_low, most * out_high)


def _known(texts: Iterable[str], stand: _Stand) -> Iterable[str]:
    """The texts that are there already, under those and what they are revisions of."""
    for text in texts:
        below: str | None = text
        while below is not None and below in stand.texts:
            below = stand.texts[below]
        if below is not None:
            yield below


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
