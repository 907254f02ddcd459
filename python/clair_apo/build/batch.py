"""`--batch submit | status | collect`: the calls of a run, handed over in batches and taken back.

The methods run as they always do. Where a reply is not on file the row waits: its request goes into a
batch, and a later round goes on from the reply. So what a batch brings stands in the ledger as if it had
been asked for alone, and any run over the folder finds it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clair_apo.build.calls import attempt, finish_now, forget_failed
from clair_apo.build.methods import Method
from clair_apo.build.options import BuildOptions
from clair_apo.build.parties import Parties, run
from clair_apo.build.progress import Progress
from clair_apo.build.rows import Input, InputRow
from clair_apo.build.talk import Recipe
from clair_apo.errors import ClairError, StoppedEarly, UsageError
from clair_apo.llm import tokens
from clair_apo.llm.asking import Asker, Awaited, Question, output_cap, record_of
from clair_apo.llm.batch_book import CLOSED, CREATING, OPEN, PREPARED, Batch, Book
from clair_apo.llm.batch_files import FILES, LIMITS, Call, Requests, request_line, results
from clair_apo.llm.batch_services import Gone, service_of
from clair_apo.llm.chat import WAY_FAILED, CallFailed, Request, Sent
from clair_apo.llm.endpoint import Endpoint
from clair_apo.llm.ledger import Ledger, Record
from clair_apo.llm.spending import BATCH_SHARE, Reserved, Spending, cost_of

# Records that wait for the disk at once.
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Job:
    """A run in batches."""

    source: Input
    methods: Sequence[Method]
    recipe: Recipe
    parties: Parties
    options: BuildOptions
    ledger: Ledger
    book: Book
    progress: Progress

    def endpoint(self, batch: Batch) -> Endpoint:
        return _endpoint(batch, self.parties)


Take = Callable[[Call, str, str, Request], None]


@dataclass(slots=True)
class _Gatherer(Asker):
    """Asks nobody: what is not on file goes to `take`, with its place, stage and role."""

    take: Take = field(kw_only=True)

    @property
    def looks_only(self) -> bool:
        return False

    async def _make(
        self, key: bytes, question: Question, stage: str, role: str, request: Request, draw: int
    ) -> tuple[Record, object]:
        self.take((key, question.repeat), stage, role, request)
        raise Awaited


def submit(job: Job) -> dict[str, Any]:
    """Hands over what can be asked by now and is neither on file nor handed over. Raises StoppedEarly or
    ClairError where a service does not take a batch; what was handed over is written down by then."""
    book, options = job.book, job.options
    writing = _Writing(job, _under_way(job))
    _gather(job, writing.take, retry_failed=options.retry_failed)
    new = writing.finished()
    book.batches += new
    book.save()
    for batch in book.open():
        if batch.state == OPEN:
            continue
        if batch.service == FILES:
            batch.state = OPEN
            book.save()
            continue
        with service_of(job.endpoint(batch)) as service:
            service.send(batch, book.save, book.ids)
        job.progress.say(
            f"batch {batch.number}: {batch.calls:,} calls to {batch.model} are with {batch.url}"
        )
    return {
        "action": "submit",
        "submitted": sum(batch.calls for batch in new),
        "left_out": writing.left_out,
        **_listed(book, {}),
    }


def status(book: Book, parties: Parties) -> dict[str, Any]:
    """How it goes with the batches; asks the services and changes nothing."""
    told: dict[int, dict[str, Any]] = {}
    for batch in book.open():
        if batch.state != OPEN:
            continue
        if batch.service == FILES:
            there = batch.results_path.exists()
            lines = _lines(batch.results_path) if there else 0
            how = "results are there" if there else "waiting"
            if not batch.requests_path.exists():
                how = "its requests are gone"
            told[batch.number] = {"status": how, "done": lines}
            continue
        with service_of(_endpoint(batch, parties)) as service, _giving_up(batch):
            state = service.state(batch)
        told[batch.number] = {
            "status": state.status,
            "done": state.done,
            "failed": state.failed,
            "expires": state.expires,
            "trouble": state.trouble,
        }
    return {"action": "status", **_listed(book, told)}


def collect(job: Job) -> dict[str, Any]:
    """Takes the replies of the batches that have ended into the ledger, each once, and counts what is still
    to ask and, as `ready` and `waiting`, the rows of each method that miss nothing or something. A batch
    that expired or was cancelled gives what it has; the rest can be submitted again."""
    book = job.book
    took: Counter[str] = Counter()
    told: dict[int, dict[str, Any]] = {}
    for batch in list(book.open()):
        if batch.state != OPEN:
            continue
        if batch.service == FILES:
            _collect_files(job, batch, took)
            continue
        if _withdrawn(job, batch):
            continue
        with service_of(job.endpoint(batch)) as service, _giving_up(batch):
            state = service.state(batch)
            batch.status = state.status
            told[batch.number] = {"trouble": state.trouble, "done": state.done, "failed": state.failed}
            if not state.ended:
                continue
            service.fetch(batch)
        found = _ingest(job, batch)
        if batch.found and found["lines"] and not found["ours"]:
            # It only looked like this one; whether this one is there is to be looked up again.
            assert batch.id is not None
            book.not_ours.append(batch.id)
            batch.id, batch.found, batch.state = None, False, CREATING
            book.save()
            continue
        took += found
        _close(batch)
        book.save()
        batch.requests_path.unlink(missing_ok=True)
        batch.results_path.unlink(missing_ok=True)
    under_way, missing = _under_way(job), set[Call]()
    book.save()
    ready, waiting = _gather(job, lambda call, stage, role, request: missing.add(call), retry_failed=False)
    names = ("replies", "failures", "unknown", "repeated", "unreadable", "left")
    return {
        "action": "collect",
        **{name: took[name] for name in names},
        "to_submit": len(missing - under_way),
        "ready": ready,
        "waiting": waiting,
        **_listed(book, told),
    }


def left_out(result: dict[str, Any], options: BuildOptions) -> StoppedEarly | None:
    """What is to be raised where --max-cost kept calls back."""
    count = result.get("batch", {}).get("left_out")
    if not count:
        return None
    return StoppedEarly(
        f"--max-cost {options.max_cost:g}: {count:,} calls were not submitted, since with them the open "
        "batches might cost more. A higher --max-cost goes on from here."
    )


@contextlib.contextmanager
def _giving_up(batch: Batch) -> Iterator[None]:
    """Says what to do about a batch that the service has no more."""
    try:
        yield
    except Gone as error:
        raise ClairError(
            f"batch {batch.number}: {error}\nIf it is lost, remove {batch.requests}: then its calls can be "
            "submitted again."
        ) from error


def _under_way(job: Job) -> set[Call]:
    """The calls of the open batches."""
    found: set[Call] = set()
    for batch in list(job.book.open()):
        if not _withdrawn(job, batch):
            found |= Requests(batch.requests_path).calls
    return found


def _withdrawn(job: Job, batch: Batch) -> bool:
    """Closes a batch whose requests somebody removed, to give it up. Those that moved with their
    `--batch-dir` are found there."""
    if batch.requests_path.exists():
        return False
    if batch.service == FILES and job.options.batch_dir:
        moved = Path(job.options.batch_dir, batch.requests_path.name).absolute()
        if moved.exists():
            batch.requests = str(moved)
            return False
    job.progress.say(
        f"batch {batch.number} is given up, since {batch.requests} is not there: what of it is not "
        "answered can be submitted again"
    )
    _close(batch)
    return True


def _close(batch: Batch) -> None:
    batch.left = batch.calls - batch.replies - batch.failures
    batch.state, batch.reserved = CLOSED, 0.0


def _collect_files(job: Job, batch: Batch, took: Counter[str]) -> None:
    """Takes what stands in the results; the batch is done once all of its calls are there."""
    if not _withdrawn(job, batch) and batch.results_path.exists():
        found = _ingest(job, batch)
        took += found
        if batch.replies + batch.failures >= batch.calls:
            _close(batch)
    job.book.save()


def _ingest(job: Job, batch: Batch) -> Counter[str]:
    """Puts the results of a batch into the ledger and counts them; what an interrupted start put there
    counts for the batch alone."""
    requests = Requests(batch.requests_path)
    found: Counter[str] = Counter()
    seen: set[Call] = set()
    batch.replies = batch.failures = 0

    async def through() -> None:
        durable: list[asyncio.Future[None]] = []
        for result in results(batch.results_path, job.endpoint(batch)):
            found["lines"] += 1
            if result is None or result.call is None:
                found["unreadable" if result is None else "unknown"] += 1
                continue
            if result.call not in requests:
                found["unknown"] += 1
                continue
            found["ours"] += 1
            if result.outcome is None:
                found["left"] += 1
            elif result.call in seen:
                found["repeated"] += 1
            else:
                seen.add(result.call)
                record = job.ledger.get(*result.call)
                if record is None or (record.kind in WAY_FAILED and record.at < batch.at):
                    record = _record(job, batch, requests, result.call, result.outcome)
                    durable.append(job.ledger.put(*result.call, record))
                    found["failures" if record.kind else "replies"] += 1
                if record.kind:
                    batch.failures += 1
                else:
                    batch.replies += 1
            if len(durable) >= AT_ONCE:
                await asyncio.gather(*durable)
                durable.clear()
        await asyncio.gather(*durable)

    run(through())
    return found


def _record(job: Job, batch: Batch, requests: Requests, call: Call, outcome: Sent | CallFailed) -> Record:
    told = isinstance(outcome, CallFailed) or None not in (
        outcome.usage.tokens_in,
        outcome.usage.tokens_out,
    )
    request = Request(batch.model, []) if told else requests.request(call)
    batched = batch.service != FILES
    return record_of(batch.role, batch.stage, request, outcome, 0.0, job.ledger.start, batched=batched)


def _gather(job: Job, take: Take, *, retry_failed: bool) -> tuple[int, int]:
    """Runs the methods for all rows, as far as the replies on file take them. Returns how often that was to
    the end, and how often it was not."""
    ended = waiting = 0
    asker = _Gatherer(job.ledger, job.parties.roles, take=take)
    for chunk in job.source.chunks():
        for row in chunk.rows:
            job.progress.row_done([], asked=False)
            if not isinstance(row, InputRow):
                continue
            for method in job.methods:
                if retry_failed:
                    forget_failed(method, job.recipe, row, asker)
                try:
                    finish_now(attempt(method, job.recipe, row, asker))
                    ended += 1
                except Awaited:
                    waiting += 1
    return ended, waiting


class _Writing:
    """The files of new batches: one for each role and stage, and another where one is full."""

    def __init__(self, job: Job, underway: set[Call]) -> None:
        self.left_out = 0
        self._job = job
        self._taken = underway
        self._next = job.book.next_number
        self._files: dict[tuple[str, str], _File] = {}
        self._full: list[_File] = []
        options = job.options
        self._folder = Path(options.batch_dir) if options.batch_dir else job.book.folder
        self._prefix = f"{options.output_path.stem}-" if options.batch_dir else ""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not options.batch_dir:  # what an interrupted start wrote and did not come to send
            # By name: the folder may be given in other words than those under which it was noted.
            kept = {batch.requests_path.name for batch in job.book.open()}
            for path in self._folder.iterdir():
                ours = path.name.endswith((".part", ".tmp", ".outpu", ".error", ".jsonl"))
                if path.name not in kept and ours:
                    path.unlink()
        spent = job.ledger.spent()
        usd = cost_of(spent, job.parties.prices((item.role, item.model) for item in spent))
        if usd is None and options.max_cost is not None:
            raise UsageError("--max-cost: this run folder holds calls to a model whose price is not known")
        cap = math.inf if options.max_cost is None else options.max_cost
        self._spending = Spending(cap, (usd or 0.0) + job.book.reserved)
        for role in job.parties.roles:
            if (longest := job.ledger.longest_output(role)) is not None:
                self._spending.remember(role, longest)

    def take(self, call: Call, stage: str, role: str, request: Request) -> None:
        if call in self._taken:
            return
        party = self._job.parties.roles[role]
        assert party.endpoint is not None
        service = FILES if self._job.options.batch_dir else party.endpoint.api
        need = self._need(role, request)
        if self.left_out or self._spending.spent + need > self._spending.cap:
            self.left_out += 1
            return
        self._spending.spent += need
        self._taken.add(call)
        line = request_line(service, party.endpoint.url, call, request) + b"\n"
        file = self._files.get((role, stage))
        if file is None or file.is_full(len(line)):
            if file is not None:
                self._full.append(file)
            name = f"{self._prefix}{self._next:04}-{role}.requests.jsonl"
            batch = Batch(
                self._next,
                role,
                stage,
                party.name,
                service,
                party.endpoint.shown,
                str((self._folder / name).absolute()),
                0,
                0.0,
            )
            file = self._files[role, stage] = _File(batch)
            self._next += 1
        file.add(line, need)

    def finished(self) -> list[Batch]:
        """The batches, whose files are whole and on disk."""
        found = [*self._full, *self._files.values()]
        for file in found:
            file.finish()
        return sorted((file.batch for file in found), key=lambda batch: batch.number)

    def _need(self, role: str, request: Request) -> float:
        """USD that a call may cost at most."""
        party = self._job.parties.roles[role]
        if party.price is None:
            return 0.0
        ours = tokens.count_requests([request.messages], party.name)[0]
        usd = self._spending.need(Reserved(role, party.price, ours, output_cap(request.params)))
        return usd if self._job.options.batch_dir else usd * BATCH_SHARE


class _File:
    """The requests of one batch, under another name until they are whole."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._part = batch.requests_path.with_name(batch.requests_path.name + ".part")
        self._file = self._part.open("wb")
        self._size = 0
        self._limits = LIMITS[batch.service]

    def is_full(self, more: int) -> bool:
        return self.batch.calls >= self._limits.calls or self._size + more > self._limits.size

    def add(self, line: bytes, need: float) -> None:
        self._file.write(line)
        self._size += len(line)
        self.batch.calls += 1
        self.batch.reserved += need

    def finish(self) -> None:
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._part.replace(self.batch.requests_path)


def _endpoint(batch: Batch, parties: Parties) -> Endpoint:
    """Where a batch is. Raises UsageError where the flags name another place for its role."""
    party = parties.roles.get(batch.role)
    if party is None or party.endpoint is None or party.endpoint.shown != batch.url:
        raise UsageError(
            f"batch {batch.number} of the {batch.role} is open at {batch.url}, which the flags no longer "
            "name; use those with which it was submitted"
        )
    return party.endpoint


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _listed(book: Book, told: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The batches as they are shown; `told` is what the services say now."""
    shown = []
    for batch in book.batches:
        shown.append(
            {
                "number": batch.number,
                "role": batch.role,
                "model": batch.model,
                "service": batch.service,
                "url": batch.url,
                "id": batch.id,
                "state": batch.state,
                "status": batch.status,
                "calls": batch.calls,
                "replies": batch.replies,
                "failures": batch.failures,
                "left": batch.left,
                "requests": batch.requests if batch.service == FILES else None,
                "results": str(batch.results_path) if batch.service == FILES else None,
                **told.get(batch.number, {}),
            }
        )
    return {"open": book.open_calls, "batches": shown}


def as_text(result: dict[str, Any]) -> str:
    """What was done and how it stands, for people."""
    lines = []
    if result["action"] == "submit":
        lines.append(
            f"{result['submitted']:,} calls submitted"
            if result["submitted"]
            else "nothing to submit by now: what can be asked is answered, or in a batch"
        )
    if result["action"] == "collect":
        lines.append(f"{result['replies']:,} replies and {result['failures']:,} failures collected")
        odd = {
            "left": "came to nothing and can be submitted again",
            "unreadable": "lines cannot be read",
            "unknown": "lines are of no call of the batch",
            "repeated": "lines repeat another",
        }
        lines += [f"  {result[name]:,} {words}" for name, words in odd.items() if result[name]]
    lines += _table(result["batches"])
    for batch in result["batches"]:
        if batch.get("trouble"):
            lines.append(f"batch {batch['number']}: {batch['trouble']}")
        if batch["requests"] and batch["state"] == OPEN and not batch["replies"]:
            quoted = [shlex.quote(batch[name]) for name in ("requests", "results", "model")]
            lines.append("vllm run-batch -i {} -o {} --model {}".format(*quoted))
    if any(batch["state"] not in (OPEN, CLOSED) for batch in result["batches"]):
        lines.append("not all batches are handed over: --batch submit goes on")
    elif result["open"]:
        lines.append(f"{result['open']:,} calls are in open batches: --batch collect, once they are done")
    if result.get("to_submit"):
        lines.append(
            f"{result['to_submit']:,} calls can be made by now and are in no batch: --batch submit"
        )
    return "\n".join(lines)


def _table(batches: Sequence[dict[str, Any]]) -> list[str]:
    if not batches:
        return ["no batches"]
    rows: list[tuple[str, ...]] = [("batch", "role", "model", "calls", "replies", "failed", "state", "id")]
    for batch in batches:
        done = batch["replies"] or batch.get("done") or 0
        failed = batch["failures"] or batch.get("failed") or 0
        state = (
            batch["state"] if batch["state"] in (CLOSED, PREPARED) else batch["status"] or batch["state"]
        )
        counts = (f"{number:,}" for number in (batch["calls"], done, failed))
        rows.append(
            (str(batch["number"]), batch["role"], batch["model"], *counts, state, batch["id"] or "")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (3, 4, 5)
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
