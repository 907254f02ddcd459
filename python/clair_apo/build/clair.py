"""The CLAIR method: the model's own answer is rejected, its revision by a stronger model is chosen.

This is only the plan of calls and the choice. `ask` makes a call or finds it in the ledger; the same
plan runs once to make the calls and again to write the tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clair_apo import text
from clair_apo.build.checks import Band
from clair_apo.build.parser import Parsed, Refused, Unparsable, parse
from clair_apo.build.rows import InputRow
from clair_apo.build.templates import Template, as_text
from clair_apo.build.thinking import strip_thinking
from clair_apo.llm.chat import CallFailed, Message, Reply

MODEL, REVISER = "model", "reviser"
SAMPLE, REVISE = "sample", "revise"
# Characters beyond which a comparison takes so long that calls would wait for it.
LONG_TEXTS = 40_000


class Ask(Protocol):
    async def __call__(self, stage: str, role: str, messages: Sequence[Message], /) -> Reply:
        """The reply of `role`. Raises CallFailed where there is none to use."""
        ...


@dataclass(slots=True)
class Draft:
    """What a method makes of a row, before it is measured and checked."""

    rejected: str
    chosen: str
    rationale: str | None
    rejected_model: str | None
    chosen_model: str | None
    comment_cut: bool = False
    replies: list[Reply] = field(default_factory=list)

    @property
    def unchanged(self) -> bool:
        """Whether nothing but white space differs: no pair to learn from."""
        if self.chosen.split(None, 8)[:8] != self.rejected.split(None, 8)[:8]:
            return False  # told without splitting all of it
        return self.chosen.split() == self.rejected.split()


@dataclass(frozen=True, slots=True)
class Clair:
    """How revisions are asked for. With `minimality`, a revision whose edit ratio lies outside of the
    band is asked for once more, and the one nearer to the band is kept."""

    template: Template
    minimality: Band | None = None

    async def __call__(self, row: InputRow, ask: Ask) -> Draft:
        """Raises CallFailed with the kind that the row fails with."""
        replies: list[Reply] = []
        answer, rejected_model = row.response, None
        if answer is None:
            reply = await ask(SAMPLE, MODEL, row.messages)
            replies.append(reply)
            answered = strip_thinking(reply.text, as_text(row.messages))
            answer, rejected_model = answered.strip(), reply.model
            if not answer:
                raise CallFailed("empty", "the model thought and did not answer", status=200, raw=reply.raw)
        revising = _Revising(self, ask, row.messages, answer, replies)
        parsed, reply = await revising.readable()
        if self.minimality is not None:
            parsed, reply = await revising.nearer(parsed, reply, self.minimality)
        return Draft(
            answer,
            parsed.revision,
            parsed.rationale or reply.reasoning,
            rejected_model,
            reply.model,
            parsed.comment_cut,
            replies,
        )


class _Revising:
    """The talk with the reviser about one answer. Every reply goes into `replies`."""

    def __init__(
        self, method: Clair, ask: Ask, prompt: list[Message], answer: str, replies: list[Reply]
    ) -> None:
        self._template = method.template
        self._ask = ask
        self._prompt = as_text(prompt)
        self._answer = answer
        self._replies = replies
        self._asked = method.template.ask(prompt, answer)

    async def readable(self) -> tuple[Parsed, Reply]:
        """A revision that could be read, after at most one stricter request."""
        reply = await self._reply(self._asked)
        try:
            return self._read(reply), reply
        except Unparsable:
            again = await self._reply(self._template.ask_again(self._asked, reply.text))
        try:
            return self._read(again), again
        except Unparsable as error:
            raise CallFailed(
                "unparsable",
                f"no revision can be told from the reply, asked twice: {error}",
                status=200,
                tries=2,
                raw=again.raw,
            ) from None

    async def nearer(self, first: Parsed, reply: Reply, minimality: Band) -> tuple[Parsed, Reply]:
        """The first revision, or a second one that lies nearer to the band."""
        ratio = await self._edit_ratio(first)
        if ratio in minimality:
            return first, reply
        messages = self._template.ask_nearer(self._asked, reply.text, too_much=ratio > minimality.high)
        try:
            second_reply = await self._reply(messages)
            second = self._read(second_reply)
        except (CallFailed, Unparsable):
            return first, reply  # the first one is still a revision
        if minimality.distance(await self._edit_ratio(second)) < minimality.distance(ratio):
            return second, second_reply
        return first, reply

    async def _reply(self, messages: list[Message]) -> Reply:
        reply = await self._ask(REVISE, REVISER, messages)
        self._replies.append(reply)
        return reply

    def _read(self, reply: Reply) -> Parsed:
        try:
            return parse(reply.text, self._template, self._answer, self._prompt)
        except Refused as error:
            raise CallFailed(
                "refusal", f"the reviser refused: {error}", status=200, raw=reply.raw
            ) from None

    async def _edit_ratio(self, parsed: Parsed) -> float:
        def measure() -> float:
            return float(text.levenshtein_ratio([self._answer], [parsed.revision])[0].as_py())

        if len(self._answer) + len(parsed.revision) < LONG_TEXTS:
            return measure()
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # the tables are being written: nothing waits for this
            return measure()
        return await asyncio.to_thread(measure)
