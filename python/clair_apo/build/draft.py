"""What a method makes of a row: two answers, and what judges said about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from clair_apo.llm.chat import CallFailed, Reply

# Why there is no preference, where there is none. Such pairs are never kept.
TIE, DISAGREEMENT = "tie", "disagreement"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the prompt. `model` is None where nobody said whose it is; `template` is the name of the
    template that a revision was asked for with, None for what is no revision."""

    text: str
    model: str | None = None
    rating: float | None = None
    rationale: str | None = None
    template: str | None = None
    comment_cut: bool = False

    def same_as(self, other: Answer) -> bool:
        """Whether nothing but white space differs."""
        if self.text.split(None, 8)[:8] != other.text.split(None, 8)[:8]:
            return False  # told without splitting all of it
        return self.text.split() == other.text.split()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reply of a judge about two answers, 0 and 1. `shown_first` is the one that stood first or, where
    answers are scored alone (1 to 10), the one that was scored; `winner` is None for a tie or a score.
    `failure` is the kind of a reply that cannot be used, which has neither."""

    judge: str
    template: str
    shown_first: int
    winner: int | None
    score: int | None
    words: str
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judges found of two answers, 0 and 1. `winner` is the one that more than half of them find
    better, each in both orders; where there is none, `undecided` says why: TIE, DISAGREEMENT or, where no
    judge gave a verdict, the kind of `failure`. `abstained` counts the judges whose replies could not be
    used, and `unused` is what they said."""

    verdicts: tuple[Verdict, ...]
    winner: int | None
    undecided: str | None
    abstained: int = 0
    unused: tuple[Verdict, ...] = ()
    failure: CallFailed | None = None

    def turned(self) -> Judgement:
        """The same with the answers 0 and 1 exchanged."""

        def turn(verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
            return tuple(
                replace(v, shown_first=1 - v.shown_first, winner=None if v.winner is None else 1 - v.winner)
                for v in verdicts
            )

        winner = None if self.winner is None else 1 - self.winner
        return replace(self, verdicts=turn(self.verdicts), winner=winner, unused=turn(self.unused))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers that judges were asked about."""

    answers: tuple[Answer, Answer]
    judgement: Judgement


@dataclass(slots=True)
class Draft:
    """A pair before it is measured and checked.

    `judgement` is about (chosen, rejected). With `undecided`, TIE or DISAGREEMENT, the two answers stand in
    the order in which they came, and the pair is dropped. `flags` are the method's own findings. `rounds`
    are the revisions of revisions that led to it, each a draft of its own, the last one perhaps no better.
    """

    chosen: Answer
    rejected: Answer
    judgement: Judgement | None = None
    undecided: str | None = None
    flags: tuple[str, ...] = ()
    rounds: list[Draft] = field(default_factory=list)
    # What the talk collected on the way, for the tables.
    replies: list[Reply] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    given_up: list[tuple[bytes, int]] = field(default_factory=list)

    @property
    def neighbours(self) -> list[Draft]:
        """The pairs of one round's text and the one before it, as far as the judge found it better."""
        better = [each for each in self.rounds if each.judgement and each.judgement.winner == 0]
        return [replace(each, replies=self.replies) for each in better]

    @property
    def unchanged(self) -> bool:
        """Whether nothing but white space differs: no pair to learn from."""
        return self.chosen.same_as(self.rejected)
