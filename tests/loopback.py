"""A chat-completions server on loopback that behaves, and misbehaves, as a test tells it to.

It runs in a thread of its own, so the client may be this process or another one.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Answer:
    """What the server does with a request.

    `cut` sends so many bytes of the body and hangs up; `reset` does too, but resets the connection, and
    with 0 not even a status line is sent. `drip` is the seconds over which the body comes in small pieces.
    `close` ends the connection with the reply and says so; `idle_close` does it without a word, that many
    seconds later, if nothing else was asked on it. A request that asks for a stream gets one, where the
    answer is a chat completion.
    """

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
    reset: int | None = None
    drip: float = 0.0
    close: bool = False
    idle_close: float | None = None

    @property
    def whole(self) -> bool:
        """Whether all of it is sent."""
        return self.cut is None and self.reset is None

    def streams(self, asked: dict[str, Any]) -> bool:
        return bool(asked.get("stream")) and self.body is None and self.status == 200

    def events(self, asked: dict[str, Any]) -> str:
        """The chat completion as a stream."""
        whole = json.loads(self.text(asked))
        head = {"id": whole["id"], "object": "chat.completion.chunk", "model": whole["model"]}
        pieces = re.findall(r"(?s).{1,20}", self.content or "")
        deltas: list[dict[str, Any]] = [{"role": "assistant", **self.message}]
        deltas += [{"content": piece} for piece in pieces]
        chunks: list[dict[str, Any]]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish_reason}]})
        if self.usage is not None and (asked.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": self.usage})
        lines = [json.dumps({**head, **chunk}, ensure_ascii=False) for chunk in chunks]
        return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])

    def text(self, asked: dict[str, Any]) -> str:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.content, **self.message}
        body: dict[str, Any] = {
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
    path: str = ""

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
    messages were asked before. A path in `moved` sends on to the URL beside it."""

    def __init__(
        self, behave: Callable[[dict[str, Any], int], Answer], models: tuple[str, ...] = ("m",)
    ) -> None:
        self.behave = behave
        self.models = models
        self.asked: list[Asked] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.moved: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        self._latest: dict[asyncio.BaseTransport, Asked] = {}  # by connection
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Loopback:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(60)
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
        self.add_routes(app)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        await self._done.wait()
        await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/{path:.*}/chat/completions", self._chat)
        app.router.add_post("/{path:.*}/messages", self._chat)
        app.router.add_get("/v1/models", self._models)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        same = json.dumps(body["messages"], sort_keys=True)
        self._seen[same] = self._seen.get(same, 0) + 1
        if (there := self.moved.get(request.path)) is not None:
            answer = Answer(status=307, body="{}", headers={"Location": there})
        else:
            answer = self.behave(body, self._seen[same] - 1)
        asked = Asked(body, dict(request.headers), answer, time.monotonic(), path=request.path)
        self.asked.append(asked)
        if request.transport is not None:
            self._latest[request.transport] = asked
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if answer.delay:
                await asyncio.sleep(answer.delay)
        finally:
            self.in_flight -= 1
        return await self._answer(request, asked)

    async def _answer(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        answer, transport = asked.answer, request.transport
        if transport is None or transport.is_closing():  # nobody waits any more
            return web.Response()
        if answer.reset == 0:
            _reset(transport)
            return web.Response()
        if answer.idle_close is not None:
            self._loop.call_later(answer.idle_close, self._close_idle, transport, asked)
        streams = answer.streams(asked.body)
        data = (answer.events(asked.body) if streams else answer.text(asked.body)).encode()
        kind = "text/event-stream" if streams else "application/json"
        headers = {"Content-Type": kind, **answer.headers}
        if streams or answer.drip or not answer.whole:
            return await self._by_pieces(request, asked, data, headers, streams)
        asked.replied = time.monotonic()
        response = web.Response(status=answer.status, body=data, headers=headers)
        if answer.close:
            response.force_close()
        return response

    async def _by_pieces(
        self, request: web.Request, asked: Asked, data: bytes, headers: dict[str, str], streams: bool
    ) -> web.StreamResponse:
        answer = asked.answer
        response = web.StreamResponse(status=answer.status, headers=headers)
        if not streams:
            response.content_length = len(data)
        if answer.close:
            response.force_close()
        most = answer.reset if answer.cut is None else answer.cut
        size = max(1, len(data) // 10) if answer.drip else len(data)
        part = data[:most]
        try:
            await response.prepare(request)
            for begin in range(0, len(part), size):
                await asyncio.sleep(answer.drip / 10)
                await response.write(part[begin : begin + size])
            if most is None:
                await response.write_eof()
        except ConnectionError:  # the client is gone
            return response
        if most is None:
            asked.replied = time.monotonic()
            return response
        await asyncio.sleep(0.02)  # what was written goes out first
        if request.transport is not None:
            (_reset if answer.cut is None else _close)(request.transport)
        return response

    def _close_idle(self, transport: asyncio.Transport, asked: Asked) -> None:
        if self._latest.get(transport) is asked:
            transport.close()


def _close(transport: asyncio.Transport) -> None:
    transport.close()


def _reset(transport: asyncio.Transport) -> None:
    """Ends a connection as a crash does: what is on its way is lost, and the client gets an error."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def marked(revision: str, reasoning: str = "It can be clearer.") -> str:
    """A reply in the form that the paper's template asks for."""
    return f"{{teacher_reasoning}}: {reasoning}\n\n{{corrected_student_solution}}:\n{revision}"


def upper(body: dict[str, Any], _: int) -> Answer:
    """Revises `{student_solution}: x` into `x` in capitals."""
    answer = re.search(r"\{student_solution\}: (.*?)\n\n-----", body["messages"][0]["content"], re.S)
    assert answer
    return Answer(marked(answer[1].upper()))


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until `condition` holds; fails the test where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
