"""What a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from clair_apo.build.draft import Draft
from clair_apo.build.roles import MODEL
from clair_apo.build.rows import InputRow
from clair_apo.build.talk import Talk


class Method(ABC):
    """A way to make a pair of a row.

    `name` is what the table's column `method` and, where several are run, the file names say. `asks` are
    the roles that it needs (`model`, `reviser`, `stronger`, `judge`); those of `may_ask` are asked only
    where the flags name them.
    """

    name: ClassVar[str]
    asks: ClassVar[tuple[str, ...]] = ()
    may_ask: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        """The pair. It follows from the row and the replies alone, since it runs again for the tables, and
        awaits nothing but `talk`. Raises CallFailed with the kind that the row fails with."""

    def own_answers(self, samples: int) -> int:
        """How many of the model's own answers it needs for a row, with `--samples N`."""
        return 1 if MODEL in self.asks else 0
