"""Anthropic's Messages API as it is documented, for a Loopback: it checks what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from loopback import Answer, upper

VERSION = "2023-06-01"
FIELDS = {
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "top_k",
    "top_p",
}
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 5,
}


def whole(text: str | None, stop_reason: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    """A message. `more` takes the place of its fields."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [] if text is None else [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": USAGE,
        **more,
    }


def message(text: str | None, stop_reason: str | None = "end_turn", **more: Any) -> Answer:
    body = json.dumps(whole(text, stop_reason, **more), ensure_ascii=False)
    return Answer(body=body, headers={"request-id": "req_011"})


def failure(status: int, kind: str, words: str, **headers: str) -> Answer:
    body = {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_9"}
    return Answer(
        status=status,
        body=json.dumps(body),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def fault(body: dict[str, Any]) -> str | None:
    """What the API would complain of in a request."""
    if not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required"
    if unknown := body.keys() - FIELDS:
        return f"{sorted(unknown)[0]}: Extra inputs are not permitted"
    if not body["messages"]:
        return "messages: at least one message is required"
    for item in body["messages"]:
        if item["role"] not in ("user", "assistant"):
            return f'messages: Unexpected role "{item["role"]}"'
    return None


Reply = Callable[[dict[str, Any], int], Answer]


def checked(reply: Reply) -> Reply:
    """`reply`, with the complaint in its place where a request is none of this API."""

    def behave(body: dict[str, Any], n: int) -> Answer:
        words = fault(body)
        return failure(400, "invalid_request_error", words) if words else reply(body, n)

    return behave


def revises(body: dict[str, Any], n: int) -> Answer:
    """As `loopback.upper` does."""
    return message(upper(body, n).content)


def events(answer: dict[str, Any], pieces: int = 7) -> str:
    """The message as a stream; blocks come in so many pieces."""
    blocks = answer["content"]
    begin = {**answer, "content": [], "stop_reason": None, "usage": {**answer["usage"], "output_tokens": 1}}
    said: list[dict[str, Any]] = [{"type": "message_start", "message": begin}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        name = block["type"]
        said.append({"type": "content_block_start", "index": index, "content_block": {**block, name: ""}})
        size = max(1, len(block[name]) // pieces)
        for at in range(0, len(block[name]), size):
            delta = {"type": f"{name}_delta", name: block[name][at : at + size]}
            said.append({"type": "content_block_delta", "index": index, "delta": delta})
        if name == "thinking":
            delta = {"type": "signature_delta", "signature": "c2ln"}
            said.append({"type": "content_block_delta", "index": index, "delta": delta})
        said.append({"type": "content_block_stop", "index": index})
    ends = {name: answer[name] for name in ("stop_reason", "stop_sequence")}
    tokens = {"output_tokens": answer["usage"]["output_tokens"]}
    said += [{"type": "message_delta", "delta": ends, "usage": tokens}, {"type": "message_stop"}]
    return "".join(f"event: {e['type']}\ndata: {json.dumps(e, ensure_ascii=False)}\n\n" for e in said)
