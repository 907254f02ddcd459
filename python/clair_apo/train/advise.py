"""Which of APO-zero and APO-down suits a table of pairs and the model to be trained.

The paper's rule (arXiv 2408.06266): chosen answers better than the model's own call for APO-zero, a model
better than the chosen answers for APO-down. What a table says of that is counted, in this order of
weight: a judge's verdicts on the model's own answer against the chosen one (`judge_winner`), ratings of
the answers, then where the answers come from. Likelihoods are no evidence, since a
model's own answers always look likelier to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clair_apo.clean.rows import Progress, RowReader
from clair_apo.errors import ClairError
from clair_apo.terminal import one_line

ZERO, DOWN = "apo-zero", "apo-down"
KINDS = ("verdicts", "ratings", "provenance")
# A kind of evidence rules where at least this share of its rows agree.
CLEAR = 2 / 3
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
_COLUMNS = (
    *("judge_winner", "method", "chosen_model", "rejected_model", "completions"),
    *(n for two in _SCORES for n in two),
)

_WON = "chosen won against the model's own answer before a judge"
_LOST = "the model's own answer won against chosen before a judge"
_UNDECIDED = "a judge found no difference, or another one the other way round"
_ABOVE = "chosen is rated above the model's own answer"
_BELOW = "chosen is rated below the model's own answer"
_LEVEL = "chosen is the model's own answer, or rated like it"
_PREFERRED = "another model's answer stands above the model's own"
_OWN = "chosen is the better of the model's own answers"
_OFF = "both answers are of other models, ranked by a judge (the paper found APO-down the better)"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Rows that say the same. `objective` is None where they speak for neither."""

    kind: str
    objective: str | None
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Advice:
    """The objective that the evidence picks, and the evidence. `rows` are all rows of the table."""

    pairs: str
    model: str
    rows: int
    objective: str
    kind: str
    evidence: tuple[Evidence, ...]

    def text(self) -> str:
        """What a terminal shows."""
        return f"{self.objective}, by {self.kind}\n{_listed(self.evidence, self.rows)}"

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "file": self.pairs,
            "model": self.model,
            "rows": self.rows,
            "objective": self.objective,
            "kind": self.kind,
            "evidence": [
                {"kind": e.kind, "objective": e.objective, "reason": e.reason, "rows": e.rows}
                for e in self.evidence
            ],
        }


def advise(pairs: str | os.PathLike[str], model: str, on_progress: Progress | None = None) -> Advice:
    """What the table `pairs` says for training `model`, a name or a path; names are compared by their last
    part, without regard to case. Memory holds one batch.

    Raises ClairError where the file cannot be read, where it holds no evidence, or where the evidence is
    in conflict.
    """
    reader = RowReader(pairs)
    wanted = [name for name in _COLUMNS if name in reader.schema.names]
    counts: dict[tuple[str, str | None, str], int] = {}
    where = one_line(str(pairs))
    if not wanted:
        raise ClairError(_nothing(where, model))
    reader.narrow(wanted)
    name = model_name(model)
    for batch in reader:
        for row in batch.batch.to_pylist():
            for found in (_by_verdict(row, name), _by_rating(row, name), _by_provenance(row, name)):
                if found is not None:
                    counts[found] = counts.get(found, 0) + 1
        if on_progress is not None:
            on_progress(str(pairs), reader.rows_read, reader.total_rows)
    evidence = tuple(
        Evidence(*key, rows)
        for key, rows in sorted(counts.items(), key=lambda item: (KINDS.index(item[0][0]), -item[1]))
    )
    if not any(e.objective for e in evidence):
        listed = _listed(evidence, reader.rows_read)
        raise ClairError(_nothing(where, model) + (f"\n{listed}" if listed else ""))
    kind, objective = _ruling(evidence, where, reader.rows_read)
    return Advice(str(pairs), model, reader.rows_read, objective, kind, evidence)


def model_name(model: str) -> str:
    """What is compared of a model's name: the last part of a path or of `org/name`, in lower case."""
    parts = model.replace("\\", "/").rstrip("/").rpartition("/")
    return parts[2].removeprefix("local:").strip().casefold()


def _ruling(evidence: tuple[Evidence, ...], where: str, rows: int) -> tuple[str, str]:
    """The first kind that says something, and what it says. Of two kinds that disagree, it must speak
    of at least as many rows as the other."""
    said: list[tuple[str, str, int]] = []
    for kind in KINDS:
        votes = {
            o: sum(e.rows for e in evidence if (e.kind, e.objective) == (kind, o)) for o in (ZERO, DOWN)
        }
        total = sum(votes.values())
        if not total:
            continue
        best = max(votes, key=lambda o: votes[o])
        if votes[best] < CLEAR * total:
            raise ClairError(_conflict(where, f"the {kind} speak for both", evidence, rows))
        said.append((kind, best, total))
    kind, objective, total = said[0]
    for other, its, count in said[1:]:
        if its != objective and count > total:
            text = f"the {kind} speak for {objective}, the {other} of more rows for {its}"
            raise ClairError(_conflict(where, text, evidence, rows))
    return kind, objective


def _conflict(where: str, text: str, evidence: tuple[Evidence, ...], rows: int) -> str:
    return (
        f"{where}: {text}; choose with --objective {ZERO} or --objective {DOWN}\n{_listed(evidence, rows)}"
    )


def _nothing(where: str, model: str) -> str:
    return (
        f"{where}: nothing in it says whether the chosen answers are better than those of "
        f"{one_line(model)}. Choose with --objective {ZERO} (they are) or --objective {DOWN} (they are "
        "not), or give the table the columns `method`, `chosen_model` and `rejected_model`, scores "
        "(`score_chosen` and `score_rejected`, or `completions` with the model among them), or a judge's "
        "verdicts (`clair-apo build-pairs --verify`)."
    )


def _listed(evidence: tuple[Evidence, ...], rows: int) -> str:
    digits = len(f"{rows:,}")
    return "\n".join(
        f"  {e.kind:<10}  {e.objective or 'neither':<8}  {e.rows:>{digits},}  {e.rows / rows:>6.1%}"
        f"  {e.reason}"
        for e in evidence
    )


def _is(value: object, name: str) -> bool:
    return isinstance(value, str) and model_name(value) == name


def _number(value: object) -> float | None:
    """A score; a text cell of CSV may hold one. NaN is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == number else None


def _by_verdict(row: Mapping[str, Any], name: str) -> tuple[str, str | None, str] | None:
    """Where the model's own answer was rejected: whether a judge agrees. Of two own answers, or none, a
    verdict says nothing about the model."""
    if not _is(row.get("rejected_model"), name) or _is(row.get("chosen_model"), name):
        return None
    winner = row.get("judge_winner")
    if winner == "chosen":
        return "verdicts", ZERO, _WON
    if winner == "rejected":
        return "verdicts", DOWN, _LOST
    return ("verdicts", None, _UNDECIDED) if winner in ("tie", "disagreement") else None


def _by_rating(row: Mapping[str, Any], name: str) -> tuple[str, str | None, str] | None:
    scores = _scores(row, name)
    if scores is None:
        return None
    chosen, own = scores
    if chosen == own:
        return "ratings", None, _LEVEL
    return ("ratings", ZERO, _ABOVE) if chosen > own else ("ratings", DOWN, _BELOW)


def _scores(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """The scores of the chosen answer and of the model's own; None where one is not known."""
    if _is(row.get("rejected_model"), name) and not _is(row.get("chosen_model"), name):
        for columns in _SCORES:
            chosen, own = (_number(row.get(column)) for column in columns)
            if chosen is not None and own is not None:
                return chosen, own
    answers = row.get("completions")
    if not isinstance(answers, list):
        return None
    rated = []
    for answer in answers:
        if isinstance(answer, dict):
            found = (_number(answer.get(key)) for key in ("overall_score", "rating", "score"))
            score = next((s for s in found if s is not None), None)
            if score is not None:
                rated.append((score, _is(answer.get("model"), name)))
    own_scores = [score for score, own_one in rated if own_one]
    return (max(rated)[0], max(own_scores)) if own_scores else None


def _by_provenance(row: Mapping[str, Any], name: str) -> tuple[str, str | None, str] | None:
    chosen, rejected, method = row.get("chosen_model"), row.get("rejected_model"), row.get("method")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return None
    own = (_is(chosen, name), _is(rejected, name))
    if own == (False, True):
        return "provenance", ZERO, _PREFERRED
    if own == (True, True) and method == "on_policy_judge":
        return "provenance", ZERO, _OWN
    if own == (False, False) and method == "off_policy_judge":
        return "provenance", DOWN, _OFF
    return None
