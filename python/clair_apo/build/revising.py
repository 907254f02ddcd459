"""Asking the reviser for better answers: once more where a reply cannot be read, and once more where it
lies outside of the band."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clair_apo import text
from clair_apo.build.checks import Band
from clair_apo.build.draft import Answer, Draft
from clair_apo.build.edits import parse_edits, takes_edits
from clair_apo.build.parser import Parsed, Refused, Unparsable, parse
from clair_apo.build.roles import REVISE, REVISER
from clair_apo.build.templates import EDITS, Template, as_text
from clair_apo.llm.asking import in_turn
from clair_apo.llm.chat import WAY_FAILED, CallFailed, Message, Reply

if TYPE_CHECKING:
    from clair_apo.build.talk import Talk

# Characters beyond which a comparison takes so long that calls would wait for it.
LONG_TEXTS = 40_000


async def revise(talk: Talk, answer: Answer, draw: int = 0) -> Answer:
    """The reviser's improvement of `answer`; the one counted `draw` from 0. With a template of edits, it is
    asked for these first, and in the full form where they do not apply (or could not). With a band
    (`minimality`), a revision whose edit ratio lies outside of it is asked for once more, and the one
    nearer to the band is kept.

    Raises CallFailed with the kind that the row fails with.
    """
    recipe = talk.recipe
    assert recipe.template is not None
    if recipe.edits_template is not None and takes_edits(answer.text):
        revising = _Revising(talk, recipe.edits_template, answer.text, draw)
        with contextlib.suppress(Unparsable):
            return await revising.in_band(*await revising.once())
    revising = _Revising(talk, recipe.template, answer.text, draw)
    return await revising.in_band(*await revising.readable())


async def revisions(talk: Talk, answer: Answer, count: int) -> list[Answer]:
    """So many revisions, without those that could not be read. Raises CallFailed where none could."""

    async def one(draw: int) -> Answer | CallFailed:
        try:
            return await revise(talk, answer, draw)
        except CallFailed as failed:
            if failed.kind in WAY_FAILED:
                raise
            talk.do_without()
            return failed

    ended = await in_turn(one(draw) for draw in range(count))
    found = [each for each in ended if isinstance(each, Answer)]
    if not found:
        raise next(each for each in reversed(ended) if isinstance(each, CallFailed))
    return found


async def rounds(talk: Talk, answer: Answer) -> Draft:
    """The pair of `answer` and its revision or, in several rounds, the last one that the judge finds better
    than the one before it. A later round that cannot be read ends it."""
    recipe = talk.recipe
    steps: list[Draft] = []
    while len(steps) < recipe.rounds:
        current = steps[-1].chosen if steps else answer
        try:
            step = await most_contrastive(talk, current, await revisions(talk, current, recipe.best_of))
            if recipe.rounds > 1 and step.judgement is None and not step.unchanged:
                step.judgement = await talk.verify(step.chosen, step.rejected)
        except CallFailed as failed:
            if not steps or failed.kind in WAY_FAILED:
                raise
            talk.do_without()
            break
        steps.append(step)
        if step.judgement is None or step.judgement.winner != 0:
            break
    if recipe.rounds == 1:
        return steps[0]
    better = [step for step in steps if step.judgement and step.judgement.winner == 0]
    if len(better) < 2:
        return replace(steps[0], rounds=steps)
    return Draft(better[-1].chosen, answer, rounds=steps)


async def most_contrastive(talk: Talk, answer: Answer, revised: Sequence[Answer]) -> Draft:
    """The pair of `answer` and that one of its revisions which changed the least of it (and something).
    With `verify` the judge is asked about one after the other, until it finds one better."""
    ratios = [await edit_ratio(answer.text, each.text, talk.live) for each in revised]
    order = sorted(range(len(revised)), key=lambda number: ratios[number])
    changed: list[Answer] = []
    for number in order:
        if not any(revised[number].same_as(other) for other in (answer, *changed)):
            changed.append(revised[number])
    if not changed:
        return Draft(revised[0], answer)
    if not talk.recipe.verify:
        return Draft(changed[0], answer)
    judged = []
    for each in changed:
        judgement = await talk.verify(each, answer)
        judged.append(Draft(each, answer, judgement))
        if judgement.winner == 0:
            return judged[-1]
    return judged[0]


async def edit_ratio(original: str, revision: str, live: bool) -> float:
    """The character distance over the longer length; long texts keep no `live` calls waiting."""

    def measure() -> float:
        return float(text.levenshtein_ratio([original], [revision])[0].as_py())

    if live and len(original) + len(revision) >= LONG_TEXTS:
        return await asyncio.to_thread(measure)
    return measure()


class _Revising:
    """The talk with the reviser about one answer."""

    def __init__(self, talk: Talk, template: Template, answer: str, draw: int) -> None:
        self._talk = talk
        self._template = template
        self._prompt = as_text(talk.row.messages)
        self._answer = answer
        self._draw = draw
        self._asked = template.ask(talk.row.messages, answer)

    async def in_band(self, parsed: Parsed, reply: Reply) -> Answer:
        """The revision as an answer, or a second one where the first lies outside of the band."""
        if self._talk.recipe.minimality is not None:
            parsed, reply = await self.nearer(parsed, reply, self._talk.recipe.minimality)
        return Answer(
            parsed.revision,
            self._talk.named(REVISER, reply),
            rationale=parsed.rationale or reply.reasoning,
            template=self._template.name,
            comment_cut=parsed.comment_cut,
        )

    async def once(self) -> tuple[Parsed, Reply]:
        """A revision after one request. Raises Unparsable."""
        reply = await self._reply(self._asked)
        return self._read(reply), reply

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
        ratio = await self._ratio(first)
        if ratio in minimality:
            return first, reply
        messages = self._template.ask_nearer(self._asked, reply.text, too_much=ratio > minimality.high)
        try:
            second_reply = await self._reply(messages, again=True)
            second = self._read(second_reply)
        except (CallFailed, Unparsable):
            return first, reply  # the first one is still a revision
        if minimality.distance(await self._ratio(second)) < minimality.distance(ratio):
            return second, second_reply
        return first, reply

    async def _ratio(self, parsed: Parsed) -> float:
        return await edit_ratio(self._answer, parsed.revision, self._talk.live)

    async def _reply(self, messages: list[Message], *, again: bool = False) -> Reply:
        return await self._talk.ask(
            REVISE, REVISER, messages, about=(self._answer,), draw=self._draw, again=again
        )

    def _read(self, reply: Reply) -> Parsed:
        try:
            if self._template.reply == EDITS:
                return parse_edits(reply.text, self._answer, self._prompt)
            return parse(reply.text, self._template, self._answer, self._prompt)
        except Refused as error:
            raise CallFailed(
                "refusal", f"the reviser refused: {error}", status=200, raw=reply.raw
            ) from None
