"""The local model as a backend: requests that wait are answered together, in batches of like length."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clair_apo.llm.chat import KINDS, CallFailed, Halted, Request, Sent, State
from clair_apo.llm.local import (
    Cancelled,
    LocalModel,
    LocalReply,
    LocalRequest,
    RowFailure,
    plan_batches,
)

# Two cores decode sixteen rows in hardly more time than one; beyond that the padding eats the gain.
BATCH_ROWS = 16
BATCH_TOKENS = 16384
GATHER_SECONDS = 0.05
DEFAULT_MAX_TOKENS = 512
DEFAULT_TEMPERATURE = 0.7


class LocalBackend:
    """Answers requests with a model in this process, which it loads at the first one."""

    def __init__(self, spec: str, say: Callable[[str], None] | None = None) -> None:
        self._spec = spec
        self._say = say
        self._model: LocalModel | None = None
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self._under_way = 0

    async def send(self, request: Request, repeat: int = 0) -> Sent:
        """The reply in the form of a chat-completions body. Raises CallFailed, and ClairError where
        the model cannot be loaded."""
        future: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, repeat, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    def halt(self) -> None:
        """Begins no further batch; the one under way is finished."""
        for item in self._waiting:
            item.fail(Halted())
        self._waiting.clear()

    def state(self) -> State:
        return State(self._under_way, BATCH_ROWS)

    async def close(self) -> None:
        self._closing = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)  # the rows of one moment belong into one batch
        batch: list[_Waiting] = []
        try:
            if self._model is None:
                self._model = await asyncio.to_thread(LocalModel, self._spec, self._say)
            model = self._model
            while self._waiting:
                batch = await asyncio.to_thread(self._take, model)
                begun = time.monotonic()
                self._under_way = len(batch)
                requests = [self._as_local(item) for item in batch]
                results = await asyncio.to_thread(model.generate, requests, lambda: self._closing)
                for item, result in zip(batch, results, strict=True):
                    item.settle(result, model.name, time.monotonic() - begun)
                batch, self._under_way = [], 0
        except Exception as error:
            for item in [*batch, *self._waiting]:
                item.fail(error)
            self._waiting.clear()

    def _take(self, model: LocalModel) -> list[_Waiting]:
        """The next batch: the oldest request that waits, and those nearest to it in length."""
        waiting = [item for item in self._waiting if not item.future.done()]
        for item in waiting:
            if item.tokens is None:
                item.tokens = _length(model, item.request)
        plan = plan_batches([item.tokens or 0 for item in waiting], BATCH_ROWS, BATCH_TOKENS)
        chosen = next((part for part in plan if 0 in part), [])
        batch = [waiting[index] for index in chosen]
        self._waiting = [item for item in self._waiting if item not in batch]
        return batch

    def _as_local(self, item: _Waiting) -> LocalRequest:
        params = item.request.params
        seed = item.request.key("local", str(params.get("seed", 0)).encode())
        return LocalRequest(
            messages=list(item.request.messages),
            max_tokens=int(params.get("max_tokens", DEFAULT_MAX_TOKENS)),
            temperature=float(params.get("temperature", DEFAULT_TEMPERATURE)),
            top_p=float(params.get("top_p", 1.0)),
            seed=(int.from_bytes(seed[:7], "big") << 8) + item.repeat % 256,
        )


@dataclass(slots=True, eq=False)
class _Waiting:
    request: Request
    repeat: int
    future: asyncio.Future[Sent]
    tokens: int | None = field(default=None)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def settle(self, result: LocalReply | RowFailure, model: str, seconds: float) -> None:
        if isinstance(result, Cancelled):
            self.future.cancel()
        elif isinstance(result, RowFailure):
            self.fail(CallFailed(result.kind if result.kind in KINDS else "invalid_reply", str(result)))
        elif not self.future.done():
            self.future.set_result(Sent(_body(result, model), 1, seconds))


def _length(model: LocalModel, request: Request) -> int:
    try:
        return model.count_tokens(request.messages)
    except RowFailure:
        return 0  # `generate` says what is wrong with it, in its place


def _body(reply: LocalReply, model: str) -> str:
    body: dict[str, Any] = {
        "model": model,
        "choices": [
            {
                "message": {"role": "assistant", "content": reply.text},
                "finish_reason": reply.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        },
    }
    return json.dumps(body, ensure_ascii=False)
