"""On-policy judge: a judge picks chosen and rejected among answers of the model itself (`--samples`)."""

from __future__ import annotations

from clair_apo.build.draft import Draft
from clair_apo.build.methods.base import Method
from clair_apo.build.roles import JUDGE, MODEL
from clair_apo.build.rows import InputRow
from clair_apo.build.talk import Talk


class OnPolicyJudge(Method):
    name = "on-policy-judge"
    asks = (MODEL, JUDGE)

    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        return await talk.best_and_worst(await talk.own_answers(talk.recipe.samples))

    def own_answers(self, samples: int) -> int:
        return samples
