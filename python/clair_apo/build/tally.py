"""What the verdicts of a run say about the judges: do they look at the place instead of the answer, and do
they agree with the ratings?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from clair_apo.build.draft import TIE, Comparison, Verdict

# From here on a bias is told. Comparisons in which both orders named the same place are toss-ups between
# the two places for an unbiased judge, so their difference has a standard deviation of sqrt(n).
LARGE_BIAS, SMALL_BIAS, DEVIATIONS = 0.5, 0.1, 3.0


@dataclass(slots=True)
class Places:
    """Verdicts of the pairwise form by the place that they name, over both orders. `both_first` and
    `both_second` count comparisons in which one judge named the same place both times."""

    first: int = 0
    second: int = 0
    ties: int = 0
    both_first: int = 0
    both_second: int = 0

    def add(self, orders: tuple[Verdict, Verdict]) -> None:
        for verdict in orders:
            if verdict.winner is None:
                self.ties += 1
            elif verdict.winner == verdict.shown_first:
                self.first += 1
            else:
                self.second += 1
        places = {None if v.winner is None else v.winner == v.shown_first for v in orders}
        self.both_first += places == {True}
        self.both_second += places == {False}

    def merge(self, other: Places) -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def verdicts(self) -> int:
        return self.first + self.second + self.ties

    @property
    def bias(self) -> float | None:
        """The share of verdicts for the first place minus that for the second; None without verdicts."""
        return (self.first - self.second) / self.verdicts if self.verdicts else None

    @property
    def biased(self) -> bool:
        """Whether the bias is large, or more than chance gives."""
        size = abs(self.bias or 0.0)
        same = self.both_first + self.both_second
        beyond = abs(self.both_first - self.both_second) > DEVIATIONS * math.sqrt(same)
        return size >= LARGE_BIAS or (size >= SMALL_BIAS and beyond)

    def json(self) -> dict[str, Any]:
        return {
            "ties": self.ties,
            "first_position_share": self.first / self.verdicts if self.verdicts else None,
            "position_bias": self.bias,
            "biased": self.biased,
        }


@dataclass(slots=True)
class Tally:
    """Sums over comparisons of two answers. `no_verdict` counts those in which no judge gave a verdict, by
    the kind of failure; `rated` counts those with a winner and two different ratings; in `agreed` of them
    the winner has the higher one."""

    comparisons: int = 0
    decided: int = 0
    tied: int = 0
    score_ties: int = 0
    no_verdict: Counter[str] = field(default_factory=Counter)
    abstentions: int = 0
    rated: int = 0
    agreed: int = 0
    places: dict[str, Places] = field(default_factory=dict)

    def add(self, comparisons: Iterable[Comparison]) -> None:
        for comparison in comparisons:
            judgement = comparison.judgement
            self.comparisons += 1
            self.decided += judgement.winner is not None
            self.tied += judgement.undecided == TIE
            if judgement.failure is not None:
                self.no_verdict[judgement.failure.kind] += 1
            self.abstentions += judgement.abstained
            for one, other in zip(judgement.verdicts[::2], judgement.verdicts[1::2], strict=True):
                places = self.places.setdefault(one.judge, Places())
                if one.score is None:
                    places.add((one, other))
                else:
                    self.score_ties += one.score == other.score
            ratings = [answer.rating for answer in comparison.answers]
            if judgement.winner is not None and None not in ratings and ratings[0] != ratings[1]:
                self.rated += 1
                self.agreed += ratings[judgement.winner] == max(r for r in ratings if r is not None)

    def merge(self, other: Tally) -> None:
        for item in fields(self):
            if item.name != "places":
                setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        for name, places in other.places.items():
            self.places.setdefault(name, Places()).merge(places)

    def json(self, calls: int | None = None) -> dict[str, Any]:
        """`judge` of the summary. `calls` are all calls to judges, over the life of the run folder. In the
        pairwise form `ties` are verdicts, of which a comparison has two; where answers are scored, they are
        pairs of equal scores."""
        whole = Places()
        for places in self.places.values():
            whole.merge(places)
        found = whole.json()
        found["ties"] += self.score_ties
        found["biased"] = any(places.biased for places in self.places.values())
        return {
            **({"calls": calls} if calls is not None else {}),
            "comparisons": self.comparisons,
            "decided": self.decided,
            "tied": self.tied,
            "disagreements": self.comparisons - self.decided - self.tied - self.no_verdict.total(),
            "no_verdict": dict(sorted(self.no_verdict.items())),
            "abstentions": self.abstentions,
            **found,
            "rating_agreement": self.agreed / self.rated if self.rated else None,
            "rated_comparisons": self.rated,
            "judges": {name: places.json() for name, places in self.places.items()},
        }
