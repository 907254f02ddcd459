"""A chat-completions server on loopback that behaves, and misbehaves, as a test tells it to.

It runs in a thread of its own, so the client may be this process or another one.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Answer:
    """What the server does with a request. `cut` sends so many bytes of the body and hangs up."""

    content: str | None = "fine"
    finish_reason: str | None = "stop"
    status: int = 200
    body: str | None = None  # in place of a chat completion
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    message: dict[str, Any] = field(default_factory=dict)  # further fields of the message
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    )
    model: str | None = None

    def text(self, asked: dict[str, Any]) -> str:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.content, **self.message}
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": self.model or asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
        }
        if self.usage is not None:
            body["usage"] = self.usage
        return json.dumps(body, ensure_ascii=False)


@dataclass
class Asked:
    """A request, when it came and when its reply was sent (by `time.monotonic`; None: not yet)."""

    body: dict[str, Any]
    headers: dict[str, str]
    answer: Answer
    at: float
    replied: float | None = None

    @property
    def last(self) -> str:
        """The text of the last message."""
        return str(self.body["messages"][-1]["content"])


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI sends them."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}})
    return Answer(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


class Loopback:
    """The server; a context manager. `behave` gets a request's body and how often the very same
    messages were asked before."""

    def __init__(
        self, behave: Callable[[dict[str, Any], int], Answer], models: tuple[str, ...] = ("m",)
    ) -> None:
        self.behave = behave
        self.models = models
        self.asked: list[Asked] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._seen: dict[str, int] = {}
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Loopback:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        await self._done.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        same = json.dumps(body["messages"], sort_keys=True)
        self._seen[same] = self._seen.get(same, 0) + 1
        answer = self.behave(body, self._seen[same] - 1)
        asked = Asked(body, dict(request.headers), answer, time.monotonic())
        self.asked.append(asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if answer.delay:
                await asyncio.sleep(answer.delay)
        finally:
            self.in_flight -= 1
        data = answer.text(body).encode()
        if answer.cut is not None:
            response = web.StreamResponse(headers={"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: answer.cut])
            assert request.transport is not None
            request.transport.close()
            return response
        asked.replied = time.monotonic()
        return web.Response(
            status=answer.status,
            body=data,
            headers={"Content-Type": "application/json", **answer.headers},
        )


def marked(revision: str, reasoning: str = "It can be clearer.") -> str:
    """A reply in the form that the paper's template asks for."""
    return f"{{teacher_reasoning}}: {reasoning}\n\n{{corrected_student_solution}}:\n{revision}"


def upper(body: dict[str, Any], _: int) -> Answer:
    """Revises `{student_solution}: x` into `x` in capitals."""
    answer = re.search(r"\{student_solution\}: (.*?)\n\n-----", body["messages"][0]["content"], re.S)
    assert answer
    return Answer(marked(answer[1].upper()))


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until `condition` holds; fails the test where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
