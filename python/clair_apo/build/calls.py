"""The first pass of build-pairs: the methods run for every row until all their calls are on disk.

The same methods run again for the tables, with an asker that only looks up; so they follow from the
input and the ledger alone, however often this pass was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from clair_apo.build.draft import Draft
from clair_apo.build.methods import BUILT_IN, Method
from clair_apo.build.progress import Progress
from clair_apo.build.rows import Input, InputRow
from clair_apo.build.talk import Ask, Call, Recipe, Talk
from clair_apo.errors import ClairError, StoppedEarly
from clair_apo.llm.asking import Asker, Awaited, NotOnFile, Question
from clair_apo.llm.chat import CallFailed, Halted, Reply

# How long calls in flight may still come home after Ctrl-C: they are paid.
GRACE_SECONDS = 5.0
STARTED_AT_ONCE = 16
# Rows that end so one after the other, and no other way, say that something is wrong with the way.
NO_WAY = ("http_4xx", "http_5xx", "connection", "timeout")


class Interrupted(Exception):
    """Ctrl-C; what was finished stands in the ledger."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that gave no pair. `calls` are those by which it failed: the last question, the same asked
    again, and what it had gone on without."""

    stage: str
    failure: CallFailed
    calls: tuple[Call, ...] = ()


async def attempt(
    method: Method, recipe: Recipe, row: InputRow, asker: Asker, question: Question | None = None
) -> Draft | Failed:
    """The method's draft for a row, judged where the recipe says so, or what it failed with. `question`
    collects the calls it took."""
    collected = question or Question(row.content, row.repeat)

    async def answering(ask: Ask) -> Reply:
        return await asker.ask(collected, ask.stage, ask.role, ask.messages, ask.draw)

    talk = Talk(recipe, row, answering, collected.used, live=bool(asker.backends))
    try:
        draft = await method(row, talk)
        return await finished(draft, talk)
    except CallFailed as failure:
        return Failed(talk.stage, failure, (*talk.given_up, *talk.last_calls))
    except (ClairError, Awaited, Halted, NotOnFile):
        raise
    except Exception as error:
        if method.name in BUILT_IN:
            raise
        raise ClairError(
            f"the method {method.name} failed in row {row.number}: {type(error).__name__}: {error}"
        ) from error


async def finished(draft: Draft, talk: Talk) -> Draft:
    """The draft with its verdicts, where the recipe wants them and there are none yet, and with what the
    talk collected."""
    recipe = talk.recipe
    if not isinstance(draft, Draft):  # of a method of the user's own
        raise TypeError(f"it returned a {type(draft).__name__}, not a Draft")
    if recipe.verify and not draft.undecided and draft.judgement is None and not draft.unchanged:
        draft.judgement = await talk.verify(draft.chosen, draft.rejected)
    draft.replies, draft.comparisons, draft.given_up = talk.replies, talk.comparisons, talk.given_up
    return draft


def finish_now(coroutine: Coroutine[Any, Any, Draft | Failed]) -> Draft | Failed:
    """The result of a coroutine that waits for nothing. Raises ClairError for one that does."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Draft | Failed = done.value
        return result
    coroutine.close()
    raise ClairError("a method awaited something else than its calls, and so gives no table")


@dataclass(slots=True)
class _Streak:
    """Rows in a row that the way to the server has failed."""

    most: int
    length: int = 0

    def ended(self, outcome: Draft | Failed) -> None:
        """Raises StoppedEarly where it has become too long."""
        if not isinstance(outcome, Failed) or outcome.failure.kind not in NO_WAY:
            self.length = 0
            return
        self.length += 1
        if self.most and self.length >= self.most:
            raise StoppedEarly(
                f"{self.length} rows in a row have failed (--max-consecutive-failures {self.most}), the "
                f"last one so: {outcome.failure.message}\nRun the same command again once that is mended; "
                "--retry-failed also asks again for rows that failed with http_4xx."
            )


@dataclass(slots=True)
class _Under:
    """The rows that are under way, and so how many at the beginning are done."""

    rows: set[int] = field(default_factory=set)
    next: int = 0

    def done(self) -> int:
        return min(self.rows, default=self.next)


async def make_calls(
    source: Input,
    methods: Sequence[Method],
    recipe: Recipe,
    asker: Asker,
    progress: Progress,
    *,
    concurrency: int,
    retry_failed: bool,
    max_consecutive_failures: int,
) -> None:
    """Runs the methods for all rows, somewhat more than `concurrency` at a time, until all calls are on
    disk. For one row they run one after the other, so that what they share is asked for once.

    Raises Interrupted after Ctrl-C, and StoppedEarly or LedgerError where no call could go on; calls in
    flight are waited for first.
    """
    rows = _usable(source, progress)
    trouble: list[Exception] = []
    streaks = [_Streak(max_consecutive_failures) for _ in methods]
    under = _Under()

    async def work() -> None:
        for row in rows:
            if asker.halted:
                return
            under.rows.add(row.number)
            under.next = row.number + 1
            ended: list[tuple[_Streak, Draft | Failed]] = []
            failed: list[str] = []
            reused: set[Call] = set()
            made = 0
            try:
                for method, streak in zip(methods, streaks, strict=True):
                    question = Question(row.content, row.repeat)
                    if retry_failed:
                        forget_failed(method, recipe, row, asker)
                    outcome = await attempt(method, recipe, row, asker, question)
                    if isinstance(outcome, Failed):
                        failed.append(outcome.failure.kind)
                    reused |= question.reused
                    if question.made:
                        made += question.made
                        ended.append((streak, outcome))
                under.rows.discard(row.number)
                progress.row_done(failed, asked=made > 0)
                progress.calls_from_ledger += len(reused)
                for streak, outcome in ended:
                    streak.ended(outcome)
                if not made:
                    await asyncio.sleep(0)  # rows that the ledger answers would keep the others waiting
            except Halted:
                return
            except Exception as error:
                trouble.append(error)
                asker.halt()
                return

    workers: list[asyncio.Task[None]] = []
    with _signals(asker, workers, progress) as interrupted:
        # More rows than calls in flight: a row also waits for the disk and for its own parsing.
        for number in range(concurrency * 5 // 4 + 16):
            workers.append(asyncio.create_task(work()))
            if number % STARTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # the first calls go out before the last rows are read
        await asyncio.gather(*workers, return_exceptions=True)
    if interrupted() and all(isinstance(error, StoppedEarly) for error in trouble):
        raise Interrupted
    if trouble:
        raise _with_hint(trouble[0], under, source)


def _with_hint(error: Exception, under: _Under, source: Input) -> Exception:
    """Says how to have the pairs of what is done, where a run stopped before its end."""
    done = under.done()
    if not isinstance(error, StoppedEarly) or not done or source.sample is not None:
        return error
    return StoppedEarly(
        f"{error}\nWhat was answered is kept. The first rows are done, {done:,} of them: with "
        f"--limit {done} the same command writes their pairs now."
    )


def _usable(source: Input, progress: Progress) -> Iterator[InputRow]:
    for chunk in source.chunks():
        for row in chunk.rows:
            if isinstance(row, InputRow):
                yield row
            else:
                progress.row_done(["input"], asked=False)


def forget_failed(method: Method, recipe: Recipe, row: InputRow, asker: Asker) -> None:
    """Takes the calls by which a row, or a part of it, failed with a paid reply in an earlier start out of
    the ledger."""
    question = Question(row.content, row.repeat)
    try:
        outcome = finish_now(attempt(method, recipe, row, Asker(asker.ledger, asker.parties), question))
    except NotOnFile:
        return  # never finished: there is nothing to take back
    calls = [
        call
        for call in (outcome.calls if isinstance(outcome, Failed) else outcome.given_up)
        if (record := asker.ledger.get(*call)) and record.start < asker.ledger.start
    ]
    if calls:
        asker.ledger.forget(calls)


@contextlib.contextmanager
def _signals(
    asker: Asker, workers: list[asyncio.Task[None]], progress: Progress
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
        asker.halt()
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
