"""CLAIR: the model's own answer is rejected, its revision by a stronger model is chosen."""

from __future__ import annotations

from clair_apo.build.draft import Draft
from clair_apo.build.methods.base import Method
from clair_apo.build.roles import MODEL, REVISER
from clair_apo.build.rows import InputRow
from clair_apo.build.talk import Talk


class Clair(Method):
    name = "clair"
    asks = (MODEL, REVISER)

    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        return await talk.revised(await talk.own_answer())
