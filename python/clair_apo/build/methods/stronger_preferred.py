"""Stronger preferred: a stronger model answers afresh; its answer is chosen, the model's own is rejected.

It shares the rejected answer and the strong model with CLAIR, so the two differ in revising against
rewriting alone.
"""

from __future__ import annotations

from clair_apo.build.draft import Draft
from clair_apo.build.methods.base import Method
from clair_apo.build.roles import MODEL, STRONGER
from clair_apo.build.rows import InputRow
from clair_apo.build.talk import Talk


class StrongerPreferred(Method):
    name = "stronger-preferred"
    asks = (MODEL, STRONGER)

    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        own = await talk.own_answer()
        return Draft(chosen=await talk.stronger_answer(), rejected=own)
