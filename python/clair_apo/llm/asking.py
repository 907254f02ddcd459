"""Asking a model through the ledger: what was answered before is not asked again.

`build` and `evaluate` say what to ask; whatever a server does, each question ends as one record.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from clair_apo.llm import tokens
from clair_apo.llm.chat import (
    WAY_FAILED,
    Backend,
    CallFailed,
    Halted,
    Message,
    Reply,
    Request,
    Sent,
    Usage,
    interpret,
)
from clair_apo.llm.endpoint import Endpoint
from clair_apo.llm.ledger import Ledger, Record
from clair_apo.llm.prices import Price
from clair_apo.llm.spending import Reserved, Spending, cost_of_call
from clair_apo.llm.wire import CAPS

# For backends that draw their own random numbers: rows that repeat and draws of a row are all to differ.
DRAWS_APART = 101
# How many first replies are looked at closely for a prompt that was cut.
LOOKED_AT = 50


class NotOnFile(Exception):
    """The ledger has no such call, and there is nobody to ask."""


@dataclass(frozen=True, slots=True)
class Party:
    """Who is asked: a name, the parameters of its requests, where it is, and what it costs."""

    name: str
    params: dict[str, Any]
    endpoint: Endpoint | None  # None: in this process
    price: Price | None = None

    @property
    def url(self) -> str | None:
        """The URL as it may be stored and shown."""
        return self.endpoint.shown if self.endpoint else None


@dataclass(slots=True)
class Question:
    """One row's talk: which content it is about, the calls that it took, and what they took: tokens as
    far as they are known, and USD (None: a price is not known)."""

    content: bytes
    repeat: int
    used: list[tuple[bytes, int]] = field(default_factory=list)
    made: int = 0  # calls of this start, the others were on file
    reused: set[tuple[bytes, int]] = field(default_factory=set)  # calls of earlier starts
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = 0.0

    def add(self, record: Record, price: Price | None) -> None:
        if record.tokens_in is None or record.tokens_out is None:
            return
        self.tokens_in = (self.tokens_in or 0) + record.tokens_in
        self.tokens_out = (self.tokens_out or 0) + record.tokens_out
        if price is None or self.cost is None:
            self.cost = None
        else:
            self.cost += cost_of_call(record, price)


T = TypeVar("T")


class Awaited(Exception):
    """The reply is still to come, from a batch."""


async def in_turn(asked: Iterable[Awaitable[T]]) -> list[T]:
    """What each of some questions gives that do not hang on one another, in their order. Where a reply is
    still to come, the others are asked before that is said; what one of them fails with is of no account
    until then."""
    found: list[T] = []
    awaited: Awaited | None = None
    for each in asked:
        try:
            found.append(await each)
        except Awaited as error:
            awaited = error
        except CallFailed:
            if awaited is None:
                raise
            break
    if awaited is not None:
        raise awaited
    return found


class Watcher(Protocol):
    """Hears of what happens, for the live view."""

    def recorded(self, record: Record) -> None: ...
    def prompt_cut(self, role: str, ours: int, theirs: int) -> None: ...


@dataclass(slots=True)
class Asker:
    """Answers questions from the ledger, and by calling where `backends` are given."""

    ledger: Ledger
    parties: Mapping[str, Party]
    backends: Mapping[str, Backend] = field(default_factory=dict)
    spending: Spending | None = None
    watcher: Watcher | None = None
    halted: bool = False
    _looked_at: int = 0

    def halt(self) -> None:
        """Makes no further calls; those in flight come home."""
        self.halted = True
        for backend in set(self.backends.values()):
            backend.halt()

    @property
    def looks_only(self) -> bool:
        """Whether nothing is asked that is not on file."""
        return not self.backends

    async def ask(
        self, question: Question, stage: str, role: str, messages: Sequence[Message], draw: int = 0
    ) -> Reply:
        """The reply of `role`. A reply that was cut off is asked for once more, with twice the room. `draw`
        tells equal requests of one row apart, each of which is to be answered.

        Raises CallFailed where there is none to use, Halted after `halt`, NotOnFile without backends where
        the ledger has no reply.
        """
        party = self.parties[role]
        request = Request(party.name, messages, party.params)
        try:
            return await self._reply(question, stage, role, request, draw)
        except CallFailed as failure:
            larger = _with_more_room(request, failure) if party.endpoint else None
            if larger is None:
                raise
            first = failure
        try:
            return await self._reply(question, stage, role, larger, draw)
        except CallFailed as second:
            if second.kind in WAY_FAILED or second.kind == "truncated":
                raise
            raise first from None  # the server allows no more than it gave

    async def _reply(self, question: Question, stage: str, role: str, request: Request, draw: int) -> Reply:
        key = request.key(drawn(stage, draw), question.content)
        question.used.append((key, question.repeat))
        record = self.ledger.get(key, question.repeat)
        body: object = None
        if self.looks_only:
            if record is None:
                raise NotOnFile
        elif self._stands(record):
            if record is not None and record.start < self.ledger.start:
                question.reused.add((key, question.repeat))
        else:
            record, body = await self._make(key, question, stage, role, request, draw)
        assert record is not None
        question.add(record, self.parties[role].price)
        if record.kind is not None:
            raise CallFailed(
                record.kind, record.message or "", status=record.status, tries=record.tries, raw=record.raw
            )
        try:
            reply = interpret(record.raw or "", record.at, body)
        except CallFailed as failure:
            failure.tries = record.tries
            raise
        looking = self.looks_only and not record.counted
        if looking and tokens.was_cut(request.messages, record.tokens_in, record.model):
            return replace(reply, prompt_cut=True)
        return reply

    def _stands(self, record: Record | None) -> bool:
        """Whether a recorded call need not be made again. Where the way failed in an earlier start, it
        may be free by now."""
        return record is not None and (record.start == self.ledger.start or record.kind not in WAY_FAILED)

    async def _make(
        self, key: bytes, question: Question, stage: str, role: str, request: Request, draw: int
    ) -> tuple[Record, object]:
        if self.halted:
            raise Halted
        party, backend = self.parties[role], self.backends[role]
        reserved = None
        if self.spending is not None and party.price is not None:
            ours = tokens.count_requests([request.messages], party.name)[0]
            reserved = await self.spending.reserve(role, party.price, ours, output_cap(request.params))
        record = None
        begun = time.monotonic()
        outcome: Sent | CallFailed
        try:
            try:
                outcome = await backend.send(request, question.repeat + DRAWS_APART * draw)
            except CallFailed as failure:
                outcome = failure
            seconds = time.monotonic() - begun
            record = record_of(role, stage, request, outcome, seconds, self.ledger.start)
        finally:
            if reserved is not None:
                self._settle(reserved, record)
        question.made += 1
        durable = self.ledger.put(key, question.repeat, record)
        if isinstance(outcome, Sent):
            self._look_at(role, request, record)
        await durable
        if self.watcher:
            self.watcher.recorded(record)
        return record, outcome.body if isinstance(outcome, Sent) else None

    def _settle(self, reserved: Reserved, record: Record | None) -> None:
        assert self.spending is not None
        if record is None:  # it never went out, or was left
            self.spending.settle(reserved, 0.0)
            return
        cost = cost_of_call(record, reserved.price)
        if record.kind == "timeout":  # the server may have finished it, and charge for it
            cost = self.spending.need(reserved) * record.tries
        self.spending.settle(reserved, cost, record.tokens_in or 0, record.tokens_out or 0)

    def _look_at(self, role: str, request: Request, record: Record) -> None:
        """Raises the alarm, once, where a server cuts prompts; the tables flag every one of them."""
        if self.watcher is None or self._looked_at >= LOOKED_AT or record.counted:
            return
        self._looked_at += 1
        if tokens.was_cut(request.messages, record.tokens_in, record.model):
            self._looked_at = LOOKED_AT
            ours = tokens.count_requests([request.messages], record.model)[0]
            self.watcher.prompt_cut(role, ours, record.tokens_in or 0)


def record_of(
    role: str,
    stage: str,
    request: Request,
    outcome: Sent | CallFailed,
    seconds: float,
    start: int,
    *,
    batched: bool = False,
) -> Record:
    """The record of a call that ended now. `start`: which start of the command it belongs to."""
    whole = partial(
        Record,
        role,
        request.model,
        stage,
        start,
        time.time(),
        seconds,
        outcome.tries,
        raw=outcome.raw,
        batched=batched,
    )
    if isinstance(outcome, CallFailed):
        return whole(kind=outcome.kind, status=outcome.status, message=outcome.message)
    usage, counted = _counted(request, outcome)
    return whole(
        kind=None,
        status=200,
        message=None,
        request_id=outcome.request_id,
        tokens_in=usage.tokens_in,
        tokens_cached=usage.cached,
        tokens_out=usage.tokens_out,
        counted=counted,
    )


def drawn(stage: str, draw: int) -> str:
    """The stage as it stands in a content key: the first draw is as if there were no others."""
    return stage if not draw else f"{stage} {draw + 1}"


def output_cap(params: Mapping[str, Any]) -> int | None:
    """The most output tokens that a request with these parameters allows; None where it does not say."""
    cap = next((params[name] for name in CAPS if name in params), None)
    return cap if isinstance(cap, int) else None


def _with_more_room(request: Request, failure: CallFailed) -> Request | None:
    """The request with twice the room for its reply, where that was cut off."""
    if failure.kind != "truncated":
        return None
    name = next((name for name in CAPS if name in request.params), CAPS[0])
    room = max(output_cap(request.params) or 0, failure.tokens_out or len(failure.text or "") // 4)
    if not room:
        return None
    return Request(request.model, request.messages, {**request.params, name: 2 * room})


def _counted(request: Request, sent: Sent) -> tuple[Usage, bool]:
    """The tokens of a call; counted here where the server does not tell."""
    usage = sent.usage
    if usage.tokens_in is not None and usage.tokens_out is not None:
        return usage, False
    try:
        reply = interpret(sent.raw, body=sent.body)
        said = (reply.reasoning or "") + reply.text
    except CallFailed as failure:
        if failure.kind == "invalid_reply":
            return usage, False  # no chat completion: nothing says that it was paid for
        said = failure.text or ""
    tokens_in, tokens_out = usage.tokens_in, usage.tokens_out
    if tokens_in is None:
        tokens_in = tokens.count_requests([request.messages], request.model)[0]
    if tokens_out is None:
        tokens_out = tokens.count_texts([said], request.model)[0]
    return Usage(tokens_in, tokens_out, usage.cached), True
