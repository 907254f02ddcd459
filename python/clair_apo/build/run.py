"""A run of build-pairs: make the calls, then write the tables from the ledger.

The first pass runs the method for every row with an `ask` that calls what the ledger does not hold.
The second runs it again with an `ask` that only looks up, measures and checks what comes out, and
writes. So the tables follow from the input and the ledger alone, however often the first was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from clair_apo import text
from clair_apo.build.checks import EDIT_RATIO, LENGTH_RATIO, Band, check
from clair_apo.build.clair import Clair, Draft
from clair_apo.build.options import BuildOptions
from clair_apo.build.parties import Parties, Party
from clair_apo.build.progress import Progress
from clair_apo.build.rows import Chunk, Input, InputRow, Survey, UnusableRow
from clair_apo.build.templates import as_text
from clair_apo.llm.chat import (
    WAY_FAILED,
    Backend,
    CallFailed,
    Message,
    Reply,
    Request,
    Sent,
    interpret,
)
from clair_apo.llm.ledger import Ledger, Record
from clair_apo.tables import FAILURE_SCHEMA, MEASURES, TableWriter, dropped_schema, pair_schema

# How long calls in flight may still come home after Ctrl-C: they are paid.
GRACE_SECONDS = 5.0
Call = tuple[bytes, int]


class Interrupted(Exception):
    """Ctrl-C; what was finished stands in the ledger."""


class _Stop(Exception):
    """Raised in rows that need a further call after the run was told to stop."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that gave no pair."""

    stage: str
    failure: CallFailed


@dataclass(slots=True)
class Caller:
    """Answers the method's requests from the ledger, and by calling where `backends` are given."""

    ledger: Ledger
    parties: Mapping[str, Party]
    backends: Mapping[str, Backend] = field(default_factory=dict)
    concurrency: int = 1
    from_ledger: int = 0
    progress: Progress | None = None
    stopping: bool = False
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.concurrency)

    def stands(self, record: Record | None) -> bool:
        """Whether a recorded call need not be made again. Where the way failed in an earlier start, it
        may be free by now."""
        return record is not None and (record.start == self.ledger.start or record.kind not in WAY_FAILED)

    async def call(
        self, row: InputRow, stage: str, role: str, messages: Sequence[Message], used: list[Call]
    ) -> Reply:
        party = self.parties[role]
        request = Request(party.name, messages, party.params)
        key = request.key(stage, row.content)
        used.append((key, row.repeat))
        record = self.ledger.get(key, row.repeat)
        if not self.backends:
            if record is None:
                raise RuntimeError(f"the ledger has no call for row {row.number}")
        elif self.stands(record):
            self.from_ledger += 1
        else:
            record = await self._make(key, row, stage, self.backends[role], request)
        assert record is not None
        if record.kind is not None:
            raise CallFailed(
                record.kind,
                record.message or "",
                status=record.status,
                tries=record.tries,
                raw=record.raw,
            )
        try:
            return interpret(record.raw or "", record.at)
        except CallFailed as failure:
            failure.tries = record.tries
            raise

    async def _make(
        self, key: bytes, row: InputRow, stage: str, backend: Backend, request: Request
    ) -> Record:
        async with self._slots:
            if self.stopping:
                raise _Stop
            begun = time.monotonic()
            if self.progress:
                self.progress.sent()
            outcome: Sent | CallFailed
            try:
                outcome = await backend.send(request, row.repeat)
            except CallFailed as failure:
                outcome = failure
            finally:
                if self.progress:
                    self.progress.returned()
            record, durable = self.ledger.put(key, row.repeat, stage, outcome, time.monotonic() - begun)
        await durable
        if self.progress:
            self.progress.recorded(record)
        return record


async def attempt(
    method: Clair, row: InputRow, caller: Caller, used: list[Call] | None = None
) -> Draft | Failed:
    """The method's draft for a row, or what it failed with. `used` collects the calls it took."""
    calls: list[Call] = [] if used is None else used
    stage = ""

    async def ask(at: str, role: str, messages: Sequence[Message], /) -> Reply:
        nonlocal stage
        stage = at
        return await caller.call(row, at, role, messages, calls)

    try:
        return await method(row, ask)
    except CallFailed as failure:
        return Failed(stage, failure)


def finish_now(coroutine: Coroutine[Any, Any, Draft | Failed]) -> Draft | Failed:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Draft | Failed = done.value
        return result
    raise RuntimeError("a method waited for something other than its calls")


async def make_calls(
    source: Input, method: Clair, caller: Caller, progress: Progress, retry_failed: bool
) -> None:
    """Runs the method for all rows, some hundred at a time, until all calls are on disk.

    Raises Interrupted after Ctrl-C, and StoppedEarly or LedgerError where no call could go on; calls in
    flight are waited for first.
    """
    rows = _usable(source, progress)
    trouble: list[Exception] = []

    async def work() -> None:
        for row in rows:
            if caller.stopping:
                return
            try:
                if retry_failed:
                    _forget_failed(method, row, caller)
                before = caller.from_ledger
                outcome = await attempt(method, row, caller)
                await asyncio.sleep(0)  # rows that the ledger answers would keep the others waiting
                progress.row_done(
                    outcome.failure.kind if isinstance(outcome, Failed) else None,
                    from_ledger=caller.from_ledger > before,
                )
            except _Stop:
                return
            except Exception as error:
                trouble.append(error)
                caller.stopping = True
                return

    # More rows than calls in flight: a row also waits for the disk and for its own parsing.
    workers = [asyncio.create_task(work()) for _ in range(caller.concurrency * 5 // 4 + 16)]
    with _signals(caller, workers, progress) as interrupted:
        await asyncio.gather(*workers, return_exceptions=True)
    if trouble:
        raise trouble[0]
    if interrupted():
        raise Interrupted


def _usable(source: Input, progress: Progress) -> Iterator[InputRow]:
    for chunk in source.chunks():
        for row in chunk.rows:
            if isinstance(row, InputRow):
                yield row
            else:
                progress.row_done("input")


def _forget_failed(method: Clair, row: InputRow, caller: Caller) -> None:
    """Takes the last call of a row that failed with a paid reply out of the ledger."""
    looking = Caller(caller.ledger, caller.parties)
    used: list[Call] = []
    try:
        outcome = finish_now(attempt(method, row, looking, used))
    except RuntimeError:
        return  # never finished: there is nothing to take back
    if isinstance(outcome, Failed):
        stage = outcome.stage
        caller.ledger.forget(
            call
            for call in used
            if (record := caller.ledger.get(*call))
            and record.stage == stage
            and record.start < caller.ledger.start
        )


@contextlib.contextmanager
def _signals(
    caller: Caller, workers: list[asyncio.Task[None]], progress: Progress
) -> Iterator[Callable[[], bool]]:
    """Ctrl-C: no new calls, a little time for those in flight; once more: at once."""
    loop = asyncio.get_running_loop()
    pressed = 0

    def cancel() -> None:
        for worker in workers:
            worker.cancel()

    def on_signal() -> None:
        nonlocal pressed
        pressed += 1
        caller.stopping = True
        if pressed == 1:
            progress.say(
                f"stopping: calls in flight have {GRACE_SECONDS:g} s to come home (Ctrl-C again: at once)"
            )
            loop.call_later(GRACE_SECONDS, cancel)
        else:
            cancel()

    watched: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in watched:
            loop.add_signal_handler(number, on_signal)
    except (ValueError, RuntimeError):  # not the main thread: whoever runs that one gets the signal
        watched = ()
    try:
        yield lambda: pressed > 0
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


@dataclass(slots=True)
class Counts:
    """Where the rows went."""

    rows_in: int = 0
    kept: int = 0
    unchanged: int = 0
    filtered: int = 0
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Raises AssertionError where a row is lost or doubled."""
        total = self.kept + self.unchanged + self.filtered + self.failed
        if total != self.rows_in:
            raise AssertionError(f"{self.rows_in} rows in, but {total} accounted for")


def write_tables(
    source: Input,
    survey: Survey,
    method: Clair,
    caller: Caller,
    parties: Parties,
    options: BuildOptions,
    progress: Progress,
) -> Counts:
    """Writes pairs, dropped pairs and failures from the ledger, all three in the order of the input."""
    counts = Counts()
    edit_ratio = Band(*options.minimality) if options.minimality else EDIT_RATIO
    length_ratio = Band(*options.length_ratio) if options.length_ratio else LENGTH_RATIO
    with (
        TableWriter(options.output_path, pair_schema(survey.extra)) as pairs,
        TableWriter(options.beside(".dropped.parquet"), dropped_schema(survey.extra)) as dropped,
        TableWriter(options.beside(".failures.parquet"), FAILURE_SCHEMA) as failures,
    ):
        for chunk in source.chunks(survey.extra):
            outcomes = [
                row if isinstance(row, UnusableRow) else finish_now(attempt(method, row, caller))
                for row in chunk.rows
            ]
            kept, left_out = _Part(chunk), _Part(chunk)
            failures.write(
                [
                    _failure_row(row, outcome)
                    for row, outcome in zip(chunk.rows, outcomes, strict=True)
                    if not isinstance(outcome, Draft)
                ]
            )
            drafts = [
                (index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Draft)
            ]
            measured = _measures([draft for _, draft in drafts])
            for (index, draft), measures in zip(drafts, measured, strict=True):
                row = chunk.rows[index]
                assert isinstance(row, InputRow)
                flags = check(
                    draft.rejected,
                    draft.chosen,
                    as_text(row.messages),
                    method.template,
                    measures,
                    edit_ratio,
                    length_ratio,
                )
                if draft.comment_cut:
                    flags.append("comment_cut")
                pair = _pair_row(row, draft, measures, flags, parties, options.method)
                dropping = [flag for flag in flags if flag in options.drop]
                if draft.unchanged:
                    counts.unchanged += 1
                    left_out.add(index, {**pair, "reason": "unchanged"})
                elif dropping:
                    counts.filtered += 1
                    left_out.add(index, {**pair, "reason": ", ".join(dropping)})
                else:
                    counts.kept += 1
                    kept.add(index, pair)
                if not draft.unchanged:
                    counts.flags.update(flags)
            for outcome in outcomes:
                if not isinstance(outcome, Draft):
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
    table = pa.table(text.score([draft.rejected for draft in drafts], [draft.chosen for draft in drafts]))
    rows: list[dict[str, Any]] = table.select(list(MEASURES)).to_pylist()
    return rows


def _pair_row(
    row: InputRow,
    draft: Draft,
    measures: dict[str, Any],
    flags: list[str],
    parties: Parties,
    method: str,
) -> dict[str, Any]:
    return {
        "id": row.id,
        "prompt": row.messages,
        "chosen": [{"role": "assistant", "content": draft.chosen}],
        "rejected": [{"role": "assistant", "content": draft.rejected}],
        "rationale": draft.rationale,
        "method": method.replace("-", "_"),
        "template": parties.template.name,
        "chosen_model": draft.chosen_model or parties.reviser.name,
        "rejected_model": draft.rejected_model or parties.aligned,
        **measures,
        "flags": flags,
        "usage": {
            "calls": len(draft.replies),
            "tokens_in": _sum(reply.tokens_in for reply in draft.replies),
            "tokens_out": _sum(reply.tokens_out for reply in draft.replies),
        },
        "created_at": datetime.fromtimestamp(max(reply.at for reply in draft.replies), UTC),
    }


def _sum(values: Iterator[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


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
