"""Asking the reviser for a better answer: once, once more where the reply cannot be read, and once more
where it lies outside of the band."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from clair_apo import text
from clair_apo.build.checks import Band
from clair_apo.build.draft import Answer
from clair_apo.build.parser import Parsed, Refused, Unparsable, parse
from clair_apo.build.roles import REVISE, REVISER
from clair_apo.build.templates import Template, as_text
from clair_apo.llm.chat import CallFailed, Message, Reply

if TYPE_CHECKING:
    from clair_apo.build.talk import Talk

# Characters beyond which a comparison takes so long that calls would wait for it.
LONG_TEXTS = 40_000


async def revise(talk: Talk, answer: Answer) -> Answer:
    """The reviser's improvement of `answer`. With a band (`minimality`), a revision whose edit ratio lies
    outside of it is asked for once more, and the one nearer to the band is kept.

    Raises CallFailed with the kind that the row fails with.
    """
    assert talk.recipe.template is not None
    revising = _Revising(talk, talk.recipe.template, answer.text)
    parsed, reply = await revising.readable()
    if talk.recipe.minimality is not None:
        parsed, reply = await revising.nearer(parsed, reply, talk.recipe.minimality)
    return Answer(
        parsed.revision,
        talk.named(REVISER, reply),
        rationale=parsed.rationale or reply.reasoning,
        template=talk.recipe.template.name,
        comment_cut=parsed.comment_cut,
    )


class _Revising:
    """The talk with the reviser about one answer."""

    def __init__(self, talk: Talk, template: Template, answer: str) -> None:
        self._talk = talk
        self._template = template
        self._prompt = as_text(talk.row.messages)
        self._answer = answer
        self._asked = template.ask(talk.row.messages, answer)

    async def readable(self) -> tuple[Parsed, Reply]:
        """A revision that could be read, after at most one stricter request."""
        reply = await self._reply(self._asked)
        try:
            return self._read(reply), reply
        except Unparsable:
            again = await self._reply(self._template.ask_again(self._asked, reply.text), again=True)
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
            second_reply = await self._reply(messages, again=True)
            second = self._read(second_reply)
        except (CallFailed, Unparsable):
            return first, reply  # the first one is still a revision
        if minimality.distance(await self._edit_ratio(second)) < minimality.distance(ratio):
            return second, second_reply
        return first, reply

    async def _reply(self, messages: list[Message], *, again: bool = False) -> Reply:
        return await self._talk.ask(REVISE, REVISER, messages, about=(self._answer,), again=again)

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
