"""Asking judges about answers: in both orders, until a verdict can be read, and by majority.

In the pairwise form a judge sees two answers twice, each of them first once; it finds one better only where
it says so both times. In the absolute form it scores each answer alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from clair_apo.build.draft import DISAGREEMENT, TIE, Answer, Comparison, Draft, Judgement, Verdict
from clair_apo.build.judge_templates import PAIRWISE, JudgeTemplate, read_verdict
from clair_apo.build.parser import Unparsable
from clair_apo.build.roles import JUDGING
from clair_apo.build.templates import as_text
from clair_apo.build.thinking import is_refusal, strip_thinking
from clair_apo.llm.asking import in_turn
from clair_apo.llm.chat import CallFailed

if TYPE_CHECKING:
    from clair_apo.build.talk import Talk

# What a judge may fail with and others, or the pair, still stand: there is a reply, and no verdict.
ABSTAINS = frozenset({"unparsable", "refusal", "empty", "truncated", "content_filter", "context_length"})


async def compare(talk: Talk, one: Answer, other: Answer) -> Judgement:
    """What the judges find of two answers. One of several whose reply cannot be used abstains.

    Raises CallFailed where a call did not come home, or no judge gave a verdict.
    """
    judgement = await verdict(talk, one, other)
    if judgement.failure is not None:
        raise judgement.failure
    return judgement


async def verdict(talk: Talk, one: Answer, other: Answer) -> Judgement:
    """The same where the pair stands without a verdict: that there is none is said in the judgement.

    Raises CallFailed where a call did not come home.
    """
    template = talk.recipe.judge_template
    assert template is not None
    ask = _in_place if template.form == PAIRWISE else _score
    failures: list[CallFailed] = []

    async def opinion(judge: str) -> list[Verdict]:
        """What a judge says; where it abstains, the last of it is what cannot be used."""
        said: list[Verdict] = []

        async def about(number: int) -> None:
            said.append(await ask(talk, judge, template, (one, other), number))

        try:
            await in_turn(about(number) for number in (0, 1))
        except CallFailed as failed:
            if failed.kind not in ABSTAINS:
                raise
            talk.do_without()
            failures.append(failed)
            words = failed.text or failed.message
            name = talk.recipe.names[judge]
            said.append(Verdict(name, template.name, len(said), None, None, words, failed.kind))
        return said

    found = await in_turn(opinion(judge) for judge in talk.recipe.judges)
    votes = [None if said[-1].failure else _vote(said) for said in found]
    verdicts = [each for said, vote in zip(found, votes, strict=True) if vote is not None for each in said]
    unused = [each for said, vote in zip(found, votes, strict=True) if vote is None for each in said]
    failure = None if verdicts else failures[-1]
    winner, undecided = _majority(votes) if failure is None else (None, failure.kind)
    judgement = Judgement(tuple(verdicts), winner, undecided, len(failures), tuple(unused), failure)
    talk.comparisons.append(Comparison((one, other), judgement))
    return judgement


async def best_and_worst(talk: Talk, answers: Sequence[Answer]) -> Draft:
    """Each answer is compared with each other. Of the pairs with a winner, the one whose two answers lie
    furthest apart in comparisons won minus lost is taken (of several the first). Without such a pair the
    draft is undecided; where all answers are the same it is unchanged."""
    distinct: list[Answer] = []
    for answer in answers:
        if not any(answer.same_as(other) for other in distinct):
            distinct.append(answer)
    if len(distinct) < 2:
        return Draft(answers[0], answers[1])
    balance = dict.fromkeys(range(len(distinct)), 0)
    decided: list[tuple[int, int, Judgement]] = []
    undecided: list[Judgement] = []
    pairs = list(combinations(range(len(distinct)), 2))
    judgements = await in_turn(compare(talk, distinct[first], distinct[second]) for first, second in pairs)
    for (first, second), judgement in zip(pairs, judgements, strict=True):
        if judgement.winner is None:
            undecided.append(judgement)
            continue
        if judgement.winner == 0:
            decided.append((first, second, judgement))
        else:
            decided.append((second, first, judgement.turned()))
        balance[decided[-1][0]] += 1
        balance[decided[-1][1]] -= 1
    if not decided:
        why = TIE if all(each.undecided == TIE for each in undecided) else DISAGREEMENT
        return Draft(distinct[0], distinct[1], undecided[0], undecided=why)
    best, worst, judgement = max(decided, key=lambda pair: balance[pair[0]] - balance[pair[1]])
    return Draft(distinct[best], distinct[worst], judgement)


async def _in_place(
    talk: Talk, judge: str, template: JudgeTemplate, answers: tuple[Answer, Answer], first: int
) -> Verdict:
    """Which of the two is better, where the one counted `first` is shown first."""
    mark, words = await _mark(talk, judge, template, (answers[first].text, answers[1 - first].text))
    winner = {"A": first, "B": 1 - first, "C": None}[mark]
    return Verdict(talk.recipe.names[judge], template.name, first, winner, None, words)


async def _score(
    talk: Talk, judge: str, template: JudgeTemplate, answers: tuple[Answer, Answer], number: int
) -> Verdict:
    """The score of one of the two. Each text is scored once."""
    text = answers[number].text
    if (judge, text) not in talk.scores:
        talk.scores[judge, text] = await _mark(talk, judge, template, (text,))
    mark, words = talk.scores[judge, text]
    return Verdict(talk.recipe.names[judge], template.name, number, None, int(mark), words)


async def _mark(
    talk: Talk, judge: str, template: JudgeTemplate, answers: tuple[str, ...]
) -> tuple[str, str]:
    """The mark and the words of a judge, after at most one stricter request."""
    asked = template.ask(talk.row.messages, *answers)
    known = "\n".join([as_text(talk.row.messages), *answers])
    reply = await talk.ask(JUDGING, judge, asked, about=answers)
    try:
        return read_verdict(reply.text, template.form, known)
    except Unparsable:
        if is_refusal(strip_thinking(reply.text, known).strip()):
            raise CallFailed(
                "refusal", "the judge refused to judge", status=200, raw=reply.raw, text=reply.text
            ) from None
    again = await talk.ask(JUDGING, judge, template.ask_again(asked, reply.text), about=answers, again=True)
    words = f"{strip_thinking(reply.text, known).strip()}\n{again.text.strip()}"
    try:
        mark, _ = read_verdict(again.text, template.form, known)
    except Unparsable as error:
        raise CallFailed(
            "unparsable",
            f"no verdict can be told from the judge's reply, asked twice: {error}",
            status=200,
            tries=2,
            raw=again.raw,
            text=words,
        ) from None
    return mark, words


def _vote(verdicts: Sequence[Verdict]) -> int | str:
    """What one judge finds: the better answer, TIE, or DISAGREEMENT between the two orders."""
    one, other = verdicts
    if one.score is not None and other.score is not None:
        return TIE if one.score == other.score else int(other.score > one.score)
    if one.winner != other.winner:
        return DISAGREEMENT
    return TIE if one.winner is None else one.winner


def _majority(votes: Sequence[int | str | None]) -> tuple[int | None, str | None]:
    """The answer that more than half of all judges find better, or why there is none."""
    for answer in (0, 1):
        if votes.count(answer) * 2 > len(votes):
            return answer, None
    return None, TIE if all(vote == TIE for vote in votes) else DISAGREEMENT
