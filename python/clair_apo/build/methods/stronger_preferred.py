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
from clair_apo.llm.asking import in_turn


class StrongerPreferred(Method):
    name = "stronger-preferred"
    asks = (MODEL, STRONGER)

    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        # Neither hangs on the other, so a batch holds both.
        own, fresh = await in_turn(answer() for answer in (talk.own_answer, talk.stronger_answer))
        return Draft(chosen=fresh, rejected=own)
