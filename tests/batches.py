"""The batch interfaces of OpenAI and of Anthropic as they are documented, on loopback.

A test says when a batch ends, and how: `finish`. Until then nothing of it is answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from loopback import Answer, Loopback

ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass
class Batch:
    id: str
    requests: dict[str, dict[str, Any]]  # bodies by custom_id
    metadata: dict[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.time)
    status: str = "in_progress"
    outputs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    lost: int = 0


class BatchLoopback(Loopback):
    """`behave` answers the requests of a batch as it would single ones. `slow` are the paths whose work is
    done at once, and whose answer takes half a minute; `headers` are those of the requests for batches."""

    def __init__(self, behave: Callable[[dict[str, Any], int], Answer]) -> None:
        super().__init__(behave)
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Batch] = {}
        self.answered: list[str] = []  # custom ids, as often as they were answered with success
        self.slow: set[str] = set()
        self.refuse: web.Response | None = None
        self.headers: list[dict[str, str]] = []
        self._repeats: dict[str, int] = {}

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._state)
        app.router.add_post("/v1/messages/batches", self._create_messages)
        app.router.add_get("/v1/messages/batches", self._list_messages)
        app.router.add_get("/v1/messages/batches/{id}", self._state_messages)
        app.router.add_get("/v1/messages/batches/{id}/results", self._results)

    def finish(self, share: float = 1.0, status: str = "completed", seed: int = 0) -> None:
        """Ends all open batches: `share` of their requests are answered, the others are lost with `status`
        (expired or cancelled)."""
        for batch in self.batches.values():
            if batch.status == "in_progress":
                self._finish(batch, share, status, random.Random(seed))

    def add(self, count: int) -> Batch:
        """A batch of somebody else's."""
        requests: dict[str, dict[str, Any]] = {
            f"theirs-{n}": {"model": "m", "messages": []} for n in range(count)
        }
        batch = Batch(f"batch_{len(self.batches)}", requests)
        self.batches[batch.id] = batch
        return batch

    def _finish(self, batch: Batch, share: float, status: str, dice: random.Random) -> None:
        names = list(batch.requests)
        dice.shuffle(names)  # results come in any order
        for number, name in enumerate(names):
            body = batch.requests[name]
            if number >= round(share * len(names)):
                batch.lost += 1
                batch.errors.append(json.dumps({"custom_id": name, "lost": status}))
                continue
            same = json.dumps(body["messages"], sort_keys=True)
            self._repeats[same] = self._repeats.get(same, 0) + 1
            answer = self.behave(body, self._repeats[same] - 1)
            good = answer.status == 200
            batch.done += good
            batch.failed += not good
            if good:
                self.answered.append(name)
            reply = json.loads(answer.text(body))
            line = {"custom_id": name, "answer": (answer.status, reply)}
            (batch.outputs if good else batch.errors).append(json.dumps(line))
        batch.status = status

    # -- OpenAI

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        self.files[name := f"file-{len(self.files)}"] = form["file"].file.read()  # type: ignore[union-attr]
        await self._dawdle(request)
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuse is not None:
            return self.refuse
        assert body["completion_window"] == "24h"
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert all((line["method"], line["url"]) == ("POST", body["endpoint"]) for line in lines)
        batch = self._new({line["custom_id"]: line["body"] for line in lines}, len(lines), request)
        batch.metadata = body.get("metadata") or {}
        await self._dawdle(request)
        return web.json_response(self._shown(batch))

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(self._page(request, "after", self._shown))

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response(self._shown(self._named(request)))

    async def _content(self, request: web.Request) -> web.Response:
        kind, name = request.match_info["id"].split(":")
        batch = self.batches[name]
        lines = [_openai_line(json.loads(line)) for line in getattr(batch, kind)]
        return web.Response(text="\n".join(lines))  # without an end of the last line

    def _shown(self, batch: Batch) -> dict[str, Any]:
        ended = batch.status != "in_progress"
        return {
            "id": batch.id,
            "object": "batch",
            "status": batch.status,
            "created_at": int(batch.at),
            "expires_at": int(batch.at) + 86400,
            "metadata": batch.metadata,
            "output_file_id": f"outputs:{batch.id}" if ended and batch.outputs else None,
            "error_file_id": f"errors:{batch.id}" if ended and batch.errors else None,
            "request_counts": {
                "total": len(batch.requests),
                "completed": batch.done,
                "failed": batch.failed,
            },
        }

    # -- Anthropic

    async def _create_messages(self, request: web.Request) -> web.Response:
        assert request.content_length is not None
        body = await request.json()
        if self.refuse is not None:
            return self.refuse
        requests = {item["custom_id"]: item["params"] for item in body["requests"]}
        batch = self._new(requests, len(body["requests"]), request)
        await self._dawdle(request)
        return web.json_response(self._shown_messages(batch))

    async def _list_messages(self, request: web.Request) -> web.Response:
        return web.json_response(self._page(request, "after_id", self._shown_messages))

    async def _state_messages(self, request: web.Request) -> web.Response:
        return web.json_response(self._shown_messages(self._named(request)))

    async def _results(self, request: web.Request) -> web.Response:
        batch = self._named(request)
        lines = [_anthropic_line(json.loads(line)) for line in batch.outputs + batch.errors]
        return web.Response(text="".join(line + "\n" for line in lines))

    def _shown_messages(self, batch: Batch) -> dict[str, Any]:
        ended = batch.status != "in_progress"
        counts = {"succeeded": batch.done, "errored": batch.failed, "canceled": 0, "expired": batch.lost}
        counts["processing"] = len(batch.requests) - sum(counts.values())
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "created_at": datetime.fromtimestamp(batch.at, UTC).isoformat(),
            "expires_at": datetime.fromtimestamp(batch.at + 86400, UTC).isoformat(),
            "request_counts": counts,
            "results_url": f"{self.url}/messages/batches/{batch.id}/results" if ended else None,
        }

    # -- both

    def _new(self, requests: dict[str, dict[str, Any]], count: int, request: web.Request) -> Batch:
        assert len(requests) == count, "a custom_id stands there twice"
        assert all(ID.fullmatch(name) for name in requests)
        assert len({body["model"] for body in requests.values()}) == 1
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        batch = Batch(f"batch_{len(self.batches)}", requests)
        self.batches[batch.id] = batch
        return batch

    def _named(self, request: web.Request) -> Batch:
        if (batch := self.batches.get(request.match_info["id"])) is None:
            raise web.HTTPNotFound
        return batch

    def _page(
        self, request: web.Request, cursor: str, shown: Callable[[Batch], dict[str, Any]]
    ) -> dict[str, Any]:
        """Newest first, two a page: nobody may rely on one page."""
        listed = list(self.batches.values())[::-1]
        begin = 0
        if (after := request.query.get(cursor)) is not None:
            begin = [batch.id for batch in listed].index(after) + 1
        page = listed[begin : begin + 2]
        return {"data": [shown(batch) for batch in page], "has_more": begin + 2 < len(listed)}

    async def _dawdle(self, request: web.Request) -> None:
        if request.path in self.slow:
            await asyncio.sleep(30)


def _openai_line(line: dict[str, Any]) -> str:
    if "raw" in line:
        return str(line["raw"])
    if "lost" in line:
        error = {"code": f"batch_{line['lost']}", "message": "This request was not executed in time."}
        return json.dumps({"id": "r", "custom_id": line["custom_id"], "response": None, "error": error})
    status, body = line["answer"]
    response = {"status_code": status, "request_id": "req_1", "body": body}
    return json.dumps({"id": "r", "custom_id": line["custom_id"], "response": response, "error": None})


def _anthropic_line(line: dict[str, Any]) -> str:
    if "raw" in line:
        return str(line["raw"])
    if "lost" in line:
        result = {"type": {"cancelled": "canceled"}.get(line["lost"], line["lost"])}
        return json.dumps({"custom_id": line["custom_id"], "result": result})
    status, body = line["answer"]
    result = {"type": "succeeded", "message": body} if status == 200 else {"type": "errored", "error": body}
    return json.dumps({"custom_id": line["custom_id"], "result": result})
