"""Off-policy judge: both answers are other models', picked by their ratings or by the judge.

By rating as in the notebook of the paper's authors (helper for UltraFeedback): the highest is chosen, the
lowest is rejected, of equal ones the first. Where all are equal there is no pair; where several share the
highest or the lowest, the flag `rating_tie` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from clair_apo.build.draft import TIE, Answer, Draft
from clair_apo.build.methods.base import Method
from clair_apo.build.roles import JUDGE
from clair_apo.build.rows import InputRow
from clair_apo.build.talk import BY_JUDGE, Talk
from clair_apo.llm.chat import CallFailed


class OffPolicyJudge(Method):
    name = "off-policy-judge"
    may_ask = (JUDGE,)

    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        answers = talk.given_answers()
        if talk.recipe.pick == BY_JUDGE:
            return await talk.best_and_worst(answers)
        return by_rating(answers)


def by_rating(answers: Sequence[Answer]) -> Draft:
    """The best and the worst. Raises CallFailed where fewer than two have a rating."""
    rated = [(answer.rating, answer) for answer in answers if answer.rating is not None]
    if len(rated) < 2:
        raise CallFailed(
            "input", f"{len(rated)} of {len(answers)} answers have a rating, and no judge picks", tries=0
        )
    ratings = [rating for rating, _ in rated]
    high, low = max(ratings), min(ratings)
    if high == low:
        return Draft(rated[0][1], rated[1][1], undecided=TIE)
    shared = ratings.count(high) > 1 or ratings.count(low) > 1
    return Draft(
        chosen=rated[ratings.index(high)][1],
        rejected=rated[ratings.index(low)][1],
        flags=("rating_tie",) if shared else (),
    )
