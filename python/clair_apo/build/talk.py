"""One row's talk with the models, as a method uses it: each line of it is a call, or is in the ledger.

The same talk runs once to make the calls and again to write the tables, so it must follow from the row and
the replies alone: no clock, no random numbers, and nothing awaited but what stands here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from clair_apo.build import judging, revising
from clair_apo.build.checks import Band
from clair_apo.build.draft import Answer, Comparison, Draft, Judgement
from clair_apo.build.judge_templates import JudgeTemplate
from clair_apo.build.roles import AFRESH, INPUT, MODEL, SAMPLE, STRONGER, judges
from clair_apo.build.rows import InputRow
from clair_apo.build.templates import Template, as_text
from clair_apo.build.thinking import strip_thinking
from clair_apo.llm.asking import in_turn
from clair_apo.llm.chat import CallFailed, Message, Reply

Call = tuple[bytes, int]  # a call's place in the ledger: content key and repeat

# How a pair is picked from answers of other models.
BY_RATING, BY_JUDGE = "rating", "judge"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a role. `draw` tells equal requests apart that are to be answered anew; `again` says
    that this asks once more for what the last call did not give; `about` are the answers that the messages
    hold, for the forecast of what it takes."""

    stage: str
    role: str
    messages: Sequence[Message]
    about: Sequence[str] = ()
    draw: int = 0
    again: bool = False


# Gives the reply. Raises CallFailed where there is none to use.
Answering = Callable[[Ask], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a run asks, for all of its methods. `names` are the names of those who are asked, by role;
    `aligned` is whose answers the given ones are, where that is known."""

    names: dict[str, str]
    aligned: str | None = None
    template: Template | None = None
    edits_template: Template | None = None
    minimality: Band | None = None
    judge_template: JudgeTemplate | None = None
    samples: int = 2
    best_of: int = 1
    rounds: int = 1
    pick: str = BY_RATING
    verify: bool = False

    def template_of(self, answer: Answer) -> Template | None:
        """The template that a revision was asked for with; None for what is no revision."""
        known = (self.template, self.edits_template)
        return next((each for each in known if each and each.name == answer.template), None)

    @property
    def judges(self) -> list[str]:
        """The roles of the judges."""
        return judges(self.names)


class Talk:
    """What a method may ask for one row. Every operation raises CallFailed with the kind that the row fails
    with, where a reply cannot be used. `used` is where `answering` puts the calls that it takes. `live`:
    calls are under way, and are not to be kept waiting."""

    def __init__(
        self,
        recipe: Recipe,
        row: InputRow,
        answering: Answering,
        used: Sequence[Call] = (),
        *,
        live: bool = False,
    ) -> None:
        self.recipe = recipe
        self.live = live
        self.row = row
        self.stage = INPUT
        self.replies: list[Reply] = []
        self.comparisons: list[Comparison] = []
        self.scores: dict[tuple[str, str], tuple[str, str]] = {}
        # The calls by which something failed with a paid reply, and the row went on without it.
        self.given_up: list[Call] = []
        self._answering = answering
        self._used = used
        self._last = 0

    async def ask(
        self,
        stage: str,
        role: str,
        messages: Sequence[Message],
        *,
        about: Sequence[str] = (),
        draw: int = 0,
        again: bool = False,
    ) -> Reply:
        """The reply of `role` to `messages`; the others are those of `Ask`."""
        self.stage = stage
        if not again:
            self._last = len(self._used)
        reply = await self._answering(Ask(stage, role, messages, about, draw, again))
        self.replies.append(reply)
        return reply

    @property
    def last_calls(self) -> Sequence[Call]:
        """The calls of the last question, and of the same asked again."""
        return self._used[self._last :]

    def do_without(self) -> None:
        """Says that the row does without an answer to the last question."""
        self.given_up += self.last_calls

    async def own_answer(self, number: int = 0) -> Answer:
        """The model's own answer, as given in the input or sampled; the one counted `number` from 0."""
        given = self.row.own
        if number < len(given):
            return Answer(given[number], self.recipe.aligned)
        return await self._answer(SAMPLE, MODEL, number - len(given))

    async def own_answers(self, count: int) -> list[Answer]:
        """So many answers of the model's own."""
        return await in_turn(self.own_answer(number) for number in range(count))

    async def stronger_answer(self) -> Answer:
        """A fresh answer of the stronger model, which sees the prompt alone."""
        return await self._answer(AFRESH, STRONGER, 0)

    def given_answers(self) -> list[Answer]:
        """The answers of other models in the input, at least two."""
        if self.row.answers_fault is not None:
            raise CallFailed("input", self.row.answers_fault, tries=0)
        return list(self.row.answers)

    async def revise(self, answer: Answer, draw: int = 0) -> Answer:
        """The reviser's improvement of `answer`; the one counted `draw` from 0."""
        return await revising.revise(self, answer, draw)

    async def revisions(self, answer: Answer, count: int) -> list[Answer]:
        """So many of them, as far as they can be read; at least one."""
        return await revising.revisions(self, answer, count)

    async def revised(self, answer: Answer) -> Draft:
        """The pair of `answer` and its revision, as `--best-of` and `--rounds` want it."""
        return await revising.rounds(self, answer)

    async def most_contrastive(self, answer: Answer, revised: Sequence[Answer]) -> Draft:
        """The pair with the revision that changed the least, of those that a judge verifies, if it is
        asked."""
        return await revising.most_contrastive(self, answer, revised)

    async def judge(self, one: Answer, other: Answer) -> Judgement:
        """What the judges say about two answers, asked in both orders."""
        return await judging.compare(self, one, other)

    async def verify(self, chosen: Answer, rejected: Answer) -> Judgement:
        """The same about a pair that stands without it: where no reply of a judge can be used, the
        judgement says so."""
        return await judging.verdict(self, chosen, rejected)

    async def best_and_worst(self, answers: Sequence[Answer]) -> Draft:
        """The pair that the judges find furthest apart among at least two answers."""
        return await judging.best_and_worst(self, answers)

    def named(self, role: str, reply: Reply) -> str:
        """The model that a reply is of."""
        return reply.model or self.recipe.names[role]

    async def _answer(self, stage: str, role: str, draw: int) -> Answer:
        reply = await self.ask(stage, role, self.row.messages, draw=draw)
        answer = strip_thinking(reply.text, as_text(self.row.messages)).strip()
        if not answer:
            raise CallFailed("empty", "the model thought and did not answer", status=200, raw=reply.raw)
        return Answer(answer, self.named(role, reply))
