"""The CLAIR method: the model's own answer is rejected, its revision by a stronger model is chosen.

This is only the plan of calls and the choice. `ask` makes a call or finds it in the ledger; the same
plan runs once to make the calls and again to write the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clair_apo import text
from clair_apo.build.checks import Band
from clair_apo.build.parser import Parsed, Refused, Unparsable, parse, strip_thinking
from clair_apo.build.rows import InputRow
from clair_apo.build.templates import Template
from clair_apo.llm.chat import CallFailed, Message, Reply

MODEL, REVISER = "model", "reviser"
SAMPLE, REVISE = "sample", "revise"


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
            answer, rejected_model = strip_thinking(reply.text).strip(), reply.model
            if not answer:
                raise CallFailed("empty", "the model thought and did not answer", status=200, raw=reply.raw)
        asked = self.template.ask(row.messages, answer)
        parsed, reply = await self._revision(ask, asked, answer, replies)
        if self.minimality is not None:
            parsed, reply = await self._nearer(ask, asked, answer, parsed, reply, replies)
        return Draft(
            answer,
            parsed.revision,
            parsed.rationale or reply.reasoning,
            rejected_model,
            reply.model,
            parsed.comment_cut,
            replies,
        )

    async def _revision(
        self, ask: Ask, asked: list[Message], answer: str, replies: list[Reply]
    ) -> tuple[Parsed, Reply]:
        """A revision that could be read, after at most one stricter request."""
        reply = await ask(REVISE, REVISER, asked)
        replies.append(reply)
        try:
            return self._read(reply, answer), reply
        except Unparsable:
            again = await ask(REVISE, REVISER, self.template.ask_again(asked, reply.text))
            replies.append(again)
        try:
            return self._read(again, answer), again
        except Unparsable as error:
            raise CallFailed(
                "unparsable",
                f"no revision can be told from the reply, asked twice: {error}",
                status=200,
                tries=2,
                raw=again.raw,
            ) from None

    async def _nearer(
        self,
        ask: Ask,
        asked: list[Message],
        answer: str,
        first: Parsed,
        reply: Reply,
        replies: list[Reply],
    ) -> tuple[Parsed, Reply]:
        assert self.minimality is not None
        ratio = _edit_ratio(answer, first.revision)
        if ratio in self.minimality:
            return first, reply
        messages = self.template.ask_nearer(asked, reply.text, too_much=ratio > self.minimality.high)
        try:
            second_reply = await ask(REVISE, REVISER, messages)
            replies.append(second_reply)
            second = self._read(second_reply, answer)
        except (CallFailed, Unparsable):
            return first, reply  # the first one is still a revision
        if self.minimality.distance(_edit_ratio(answer, second.revision)) < self.minimality.distance(ratio):
            return second, second_reply
        return first, reply

    def _read(self, reply: Reply, answer: str) -> Parsed:
        try:
            return parse(reply.text, self.template, answer)
        except Refused as error:
            raise CallFailed(
                "refusal", f"the reviser refused: {error}", status=200, raw=reply.raw
            ) from None


def _edit_ratio(answer: str, revision: str) -> float:
    longer = max(len(answer), len(revision))
    distance = text.levenshtein([answer], [revision])[0].as_py()
    return float(distance) / longer if longer else 0.0
