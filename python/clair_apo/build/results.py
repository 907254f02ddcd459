"""The second pass of build-pairs: the tables, from the input and the ledger alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from clair_apo import text
from clair_apo.build.calls import Failed, attempt, finish_now
from clair_apo.build.checks import EDIT_RATIO, LENGTH_RATIO, Band, check
from clair_apo.build.draft import Draft, Judgement, Verdict
from clair_apo.build.methods import Method
from clair_apo.build.options import BuildOptions
from clair_apo.build.progress import Progress
from clair_apo.build.rows import Chunk, Input, InputRow, Survey, UnusableRow
from clair_apo.build.talk import Recipe
from clair_apo.build.tally import Tally
from clair_apo.build.templates import as_text
from clair_apo.llm.asking import Asker, NotOnFile, Question
from clair_apo.tables import FAILURE_SCHEMA, MEASURES, TableWriter, dropped_schema, pair_schema


@dataclass(slots=True)
class Counts:
    """Where the rows went."""

    rows_in: int = 0
    kept: int = 0
    unchanged: int = 0
    filtered: int = 0
    failed: int = 0
    waiting: int = 0  # for replies of batches
    failures: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    judged: Tally = field(default_factory=Tally)

    def add(self, other: Counts) -> None:
        """Adds the counts of another table."""
        for name in ("rows_in", "kept", "unchanged", "filtered", "failed", "waiting"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures.update(other.failures)
        self.flags.update(other.flags)
        self.judged.merge(other.judged)

    def count(self, prompts: Iterable[set[str]]) -> None:
        """Adds prompts by how their pairs ended: one that gave a pair is kept, whatever the others are."""
        for ends in prompts:
            end = next(each for each in ("kept", "filtered", "unchanged") if each in ends)
            setattr(self, end, getattr(self, end) + 1)

    def check(self) -> None:
        """Raises AssertionError where a row is lost or doubled."""
        total = self.kept + self.unchanged + self.filtered + self.failed + self.waiting
        if total != self.rows_in:
            raise AssertionError(f"{self.rows_in} rows in, but {total} accounted for")


def write_tables(
    source: Input,
    survey: Survey,
    method: Method,
    recipe: Recipe,
    asker: Asker,
    options: BuildOptions,
    progress: Progress,
) -> Counts:
    """Writes pairs, dropped pairs and failures of a method from the ledger, all three in the order of the
    input. Rows that lack a reply from a batch are counted as waiting, and left out."""
    counts = Counts()
    tables = options.tables(method.name)
    edit_ratio = Band(*options.minimality) if options.minimality else EDIT_RATIO
    length_ratio = Band(*options.length_ratio) if options.length_ratio else LENGTH_RATIO
    with (
        TableWriter(tables.pairs, pair_schema(survey.extra)) as pairs,
        TableWriter(tables.dropped, dropped_schema(survey.extra)) as dropped,
        TableWriter(tables.failures, FAILURE_SCHEMA) as failures,
    ):
        for chunk in source.chunks(survey.extra):
            questions = [
                Question(row.content, row.repeat) if isinstance(row, InputRow) else None
                for row in chunk.rows
            ]
            outcomes = [
                row
                if isinstance(row, UnusableRow)
                else _outcome(method, recipe, row, asker, questions[index], options)
                for index, row in enumerate(chunk.rows)
            ]
            kept, left_out = _Part(chunk), _Part(chunk)
            failures.write(
                [
                    _failure_row(row, outcome)
                    for row, outcome in zip(chunk.rows, outcomes, strict=True)
                    if outcome is not None and not isinstance(outcome, Draft)
                ]
            )
            drafts = [
                (index, part, draft)
                for index, outcome in enumerate(outcomes)
                if isinstance(outcome, Draft)
                for part, draft in enumerate(_pairs(outcome, options))
            ]
            ends: dict[int, set[str]] = {}
            measured = _measures([draft for _, _, draft in drafts])
            for (index, part, draft), measures in zip(drafts, measured, strict=True):
                row, question = chunk.rows[index], questions[index]
                assert isinstance(row, InputRow)
                assert question is not None
                flags = check(
                    draft.rejected.text,
                    draft.chosen.text,
                    as_text(row.messages),
                    recipe.template_of(draft.chosen),
                    measures,
                    edit_ratio,
                    length_ratio,
                    _known_flags(draft),
                )
                pair = _pair_row(row, draft, question, measures, flags, method.name)
                if part:  # what the prompt took stands with its first pair
                    pair |= {"id": f"{row.id}.{part + 1}", "usage": None}
                dropping = [flag for flag in flags if flag in options.drop or flag == draft.undecided]
                if draft.unchanged:
                    end = "unchanged"
                    left_out.add(index, {**pair, "reason": "unchanged"})
                elif dropping:
                    end = "filtered"
                    left_out.add(index, {**pair, "reason": ", ".join(dropping)})
                else:
                    end = "kept"
                    kept.add(index, pair)
                ends.setdefault(index, set()).add(end)
                if not draft.unchanged:
                    counts.flags.update(flags)
            counts.count(ends.values())
            for outcome in outcomes:
                if isinstance(outcome, Draft):
                    counts.judged.add(outcome.comparisons)
                elif outcome is None:
                    counts.waiting += 1
                else:
                    counts.failed += 1
                    counts.failures[_kind(outcome)] += 1
            counts.rows_in += len(chunk.rows)
            pairs.write(kept.rows, kept.extra())
            dropped.write(left_out.rows, left_out.extra())
            progress.written(counts.rows_in)
        for table in (pairs, dropped, failures):
            table.finish()
    counts.check()
    return counts


def _outcome(
    method: Method,
    recipe: Recipe,
    row: InputRow,
    asker: Asker,
    question: Question | None,
    options: BuildOptions,
) -> Draft | Failed | None:
    """What the ledger makes of a row; None where it lacks a reply from a batch."""
    try:
        return finish_now(attempt(method, recipe, row, asker, question))
    except NotOnFile:
        if not options.batch:
            raise
        return None


@dataclass(slots=True)
class _Part:
    """Some rows of a chunk with their other columns."""

    chunk: Chunk
    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, place: int, row: dict[str, Any]) -> None:
        self.places.append(place)
        self.rows.append(row)

    def extra(self) -> pa.StructArray | None:
        return (
            None if self.chunk.extra is None else self.chunk.extra.take(pa.array(self.places, pa.int64()))
        )


def _measures(drafts: list[Draft]) -> list[dict[str, Any]]:
    table = pa.table(
        text.score([draft.rejected.text for draft in drafts], [draft.chosen.text for draft in drafts])
    )
    rows: list[dict[str, Any]] = table.select(list(MEASURES)).to_pylist()
    return rows


def _pairs(draft: Draft, options: BuildOptions) -> list[Draft]:
    """The pairs that are made of a draft: itself, or those of its rounds."""
    return (draft.neighbours if options.round_pairs == "neighbours" else []) or [draft]


def _known_flags(draft: Draft) -> Iterator[str]:
    """The flags of a pair that its texts do not show."""
    yield from draft.flags
    if draft.chosen.comment_cut:
        yield "comment_cut"
    if any(reply.prompt_cut for reply in draft.replies):
        yield "prompt_cut"
    if draft.undecided:
        yield draft.undecided
    elif draft.judgement is not None and draft.judgement.winner != 0:
        yield "not_verified"


def _pair_row(
    row: InputRow,
    draft: Draft,
    question: Question,
    measures: dict[str, Any],
    flags: list[str],
    method: str,
) -> dict[str, Any]:
    arrived = [reply.at for reply in draft.replies]
    return {
        "id": row.id,
        "prompt": row.messages,
        "chosen": [{"role": "assistant", "content": draft.chosen.text}],
        "rejected": [{"role": "assistant", "content": draft.rejected.text}],
        "rationale": draft.chosen.rationale,
        "method": method.replace("-", "_"),
        "template": draft.chosen.template,
        "chosen_model": draft.chosen.model,
        "rejected_model": draft.rejected.model,
        **measures,
        "flags": flags,
        "chosen_rating": draft.chosen.rating,
        "rejected_rating": draft.rejected.rating,
        **_judged(draft.judgement),
        "rounds": [
            {"content": each.chosen.text, "model": each.chosen.model, **_judged(each.judgement)}
            for each in draft.rounds
        ]
        or None,
        "usage": {
            "calls": len(question.used),
            "tokens_in": question.tokens_in,
            "tokens_out": question.tokens_out,
            "cost_usd": question.cost if question.tokens_in is not None else None,
        },
        "created_at": datetime.fromtimestamp(max(arrived), UTC) if arrived else None,
    }


_SIDES = {0: "chosen", 1: "rejected", None: "tie"}


def _judged(judgement: Judgement | None) -> dict[str, Any]:
    if judgement is None:
        return {"judge_winner": None, "judge_verdicts": None}
    return {
        "judge_winner": judgement.undecided or _SIDES[judgement.winner],
        "judge_verdicts": [_verdict_row(each) for each in (*judgement.verdicts, *judgement.unused)],
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "judge": verdict.judge,
        "template": verdict.template,
        "shown_first": _SIDES[verdict.shown_first],
        "winner": verdict.failure or (_SIDES[verdict.winner] if verdict.score is None else None),
        "score": verdict.score,
        "words": verdict.words,
    }


def _failure_row(row: InputRow | UnusableRow, outcome: object) -> dict[str, Any]:
    if isinstance(row, UnusableRow):
        return {
            "row": row.number,
            "id": row.id,
            "prompt": row.prompt,
            "stage": "input",
            "kind": "input",
            "message": row.message,
            "tries": 0,
        }
    assert isinstance(outcome, Failed)
    failure = outcome.failure
    return {
        "row": row.number,
        "id": row.id,
        "prompt": as_text(row.messages),
        "stage": outcome.stage,
        "kind": failure.kind,
        "message": failure.message,
        "status": failure.status,
        "tries": failure.tries,
        "raw": failure.raw,
    }


def _kind(outcome: UnusableRow | Failed) -> str:
    return outcome.failure.kind if isinstance(outcome, Failed) else "input"
