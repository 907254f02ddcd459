"""One chat call as data: the request, the reply, and what can be wrong with either.

A reply is kept as the server sent it and interpreted anew whenever it is needed, so the ledger holds
facts and not conclusions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from clair_apo.llm.messages import as_completion, is_message
from clair_apo.quoting import quoted

Message = dict[str, str]

# Failure kinds as they stand in the table of failures.
WAY_FAILED = frozenset({"rate_limited", "timeout", "connection", "http_5xx"})
KINDS = (
    "input",
    "http_4xx",
    "http_5xx",
    "rate_limited",
    "timeout",
    "connection",
    "refusal",
    "empty",
    "truncated",
    "content_filter",
    "unparsable",
    "context_length",
    "invalid_reply",
)

_CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
_FILTERED = {"content_filter", "safety", "recitation", "prohibited_content"}
_NO_ANSWER = {"tool_calls", "function_call", "error", "abort", "cancelled", "pause_turn"}
_FULL = {"model_context_window_exceeded"}


class CallFailed(Exception):
    """A call that gave nothing to use. `kind` is one of KINDS; `raw` is what the server sent, if it did;
    `text` and `tokens_out` are what there is of an answer that was cut off."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        tries: int = 1,
        raw: str | None = None,
        text: str | None = None,
        tokens_out: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.tries = tries
        self.raw = raw
        self.text = text
        self.tokens_out = tokens_out


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the model's name, the messages, and the sampling parameters that were set."""

    model: str
    messages: Sequence[Message]
    params: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON body of a chat-completions call."""
        return {"model": self.model, "messages": list(self.messages), **self.params}

    def key(self, stage: str, content: bytes) -> bytes:
        """A 16-byte content key: equal exactly for the same request about the same input row content.
        The URL is no part of it, so a server may move."""
        messages = b",".join(
            b"{%b}" % b",".join(b"%b:%b" % (quoted(k), quoted(v)) for k, v in sorted(message.items()))
            for message in self.messages
        )
        # The JSON text of [stage, body], keys sorted: ledgers are read by it, so it may never change.
        fields = {"messages": b"[%b]" % messages, "model": quoted(self.model)}
        for name, value in self.params.items():
            text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            fields[name] = text.encode("utf-8", "surrogatepass")
        body = b",".join(b"%b:%b" % (quoted(name), fields[name]) for name in sorted(fields))
        digest = hashlib.sha256(b"[%b,{%b}]" % (quoted(stage), body))
        digest.update(content)
        return digest.digest()[:16]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. Token counts are None where the server sent none. `prompt_cut`: its count of the
    prompt shows that it saw only a part of it."""

    text: str
    reasoning: str | None
    model: str | None
    tokens_in: int | None
    tokens_out: int | None
    at: float = 0.0  # seconds since the epoch, when it arrived
    raw: str = ""
    prompt_cut: bool = False


class Halted(Exception):
    """No further calls: the run was told to stop while this one waited for its turn."""


@dataclass(frozen=True, slots=True)
class State:
    """How it goes with a backend: calls in flight, how many there may be, and for how many seconds the
    server's word holds all of them."""

    in_flight: int
    allowed: int
    paused: float = 0.0


class Backend(Protocol):
    """Something that answers requests: an endpoint, or a model in this process."""

    async def send(self, request: Request, repeat: int = 0) -> Sent:
        """The reply's body. `repeat` tells equal requests of equal rows apart, for a backend that
        draws its own random numbers. Raises CallFailed where there is no reply to be had, Halted where
        the call had not gone out when `halt` was called."""
        ...

    def halt(self) -> None:
        """Sends nothing more; calls in flight come home."""
        ...

    def state(self) -> State: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a body reports; None where it does not. `cached` is a part of `tokens_in`."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    cached: int = 0


class Sent:
    """What came back: the body of a 200 reply, not yet interpreted, read as JSON once.

    `request_id` is the server's name for the call, for its support.
    """

    __slots__ = ("body", "raw", "request_id", "seconds", "tries", "usage")

    def __init__(self, raw: str, tries: int, seconds: float, request_id: str | None = None) -> None:
        self.raw = raw
        self.tries = tries
        self.seconds = seconds
        self.request_id = request_id
        self.body = read(raw)
        self.usage = usage_of(self.body)


NOT_JSON = object()


def read(raw: str) -> object:
    """A body as JSON, for `interpret` and `usage_of`. Never raises."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(raw)  # takes more: lone surrogates, NaN
    except (ValueError, RecursionError):
        return NOT_JSON


def interpret(raw: str, at: float = 0.0, body: object = None) -> Reply:
    """Reads a body of chat completions, or of Anthropic's Messages; `body` is what `read` made of it, where
    that was done before.

    Raises CallFailed: `invalid_reply` for what is no such JSON, `truncated`, `content_filter`, `refusal`
    or `empty` for a reply that is no whole answer.
    """
    if body is None:
        body = read(raw)

    def failed(kind: str, message: str) -> CallFailed:
        return CallFailed(kind, message, status=200, raw=raw)

    if body is NOT_JSON:
        raise failed("invalid_reply", f"the reply is not JSON: {_start(raw)}")
    if not isinstance(body, dict):
        raise failed("invalid_reply", f"the reply is no JSON object: {_start(raw)}")
    if is_message(body):
        body = as_completion(body)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        if body.get("error"):
            raise failed("invalid_reply", f"the server reports: {error_text(body)}")
        raise failed("invalid_reply", f"the reply has no choices: {_start(raw)}")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise failed("invalid_reply", f"the reply has no message: {_start(raw)}")
    finish = choice.get("finish_reason")
    reason = finish.lower() if isinstance(finish, str) else ""
    if reason in _FILTERED:
        raise failed("content_filter", "the server's content filter stopped the reply")
    if isinstance(message.get("refusal"), str) and message["refusal"].strip():
        raise failed("refusal", f"the model refused: {_start(message['refusal'])}")
    if reason in _FULL:
        raise failed("context_length", "the prompt and the reply filled the model's context")
    usage = usage_of(body)
    text = _content(message.get("content"))
    if reason in _CUT:
        raise CallFailed(
            "truncated",
            "the reply was cut off at the token limit; raise --max-tokens "
            "(--model-max-tokens for the model's own answers)",
            status=200,
            raw=raw,
            text=text,
            tokens_out=usage.tokens_out,
        )
    if not reason:
        raise failed("invalid_reply", "the reply has no finish_reason, so it may be cut off")
    if reason in _NO_ANSWER:
        raise failed("invalid_reply", f"the reply ended with finish_reason {finish!r}")
    if text is None:
        raise failed("invalid_reply", "the reply's content is not text")
    if not text.strip():
        raise failed("empty", "the reply is empty")
    reasoning = (
        message.get("reasoning") or message.get("reasoning_content") or _thoughts(message.get("content"))
    )
    return Reply(
        text=text,
        reasoning=writable(reasoning) if isinstance(reasoning, str) else None,
        model=writable(body["model"]) if isinstance(body.get("model"), str) else None,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        at=at,
        raw=raw,
    )


def usage_of(body: object) -> Usage:
    """The tokens that a body reports. Never raises."""
    if isinstance(body, dict) and is_message(body):
        body = as_completion(body)
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    tokens_in = _count(usage.get("prompt_tokens"))
    return Usage(tokens_in, _count(usage.get("completion_tokens")), min(cached or 0, tokens_in or 0))


def error_text(body: object) -> str:
    """The words of an error body, in any of the shapes servers use; at most 500 characters."""
    found: object = body
    for name in ("error", "message", "detail", "msg"):
        while isinstance(found, dict) and name in found:
            found = found[name]
        if isinstance(found, list) and found:
            found = found[0]
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return _start(text, 500)


def writable(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate, which JSON can carry, becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _content(content: object) -> str | None:
    if content is None:
        return ""
    if isinstance(content, str):
        return writable(content)
    if isinstance(content, list):  # content parts; only text is an answer, and thoughts are none of it
        content = [part for part in content if not _is_thought(part)]
        texts = [
            part["text"]
            for part in content
            if isinstance(part, dict)
            and part.get("type") in ("text", "output_text")
            and isinstance(part.get("text"), str)
        ]
        if len(texts) == len(content):
            return writable("".join(texts))
    return None


def _is_thought(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("thinking", "redacted_thinking")


def _thoughts(content: object) -> str | None:
    """What content parts hold of the model's thinking: text, or parts of text again."""
    parts = content if isinstance(content, list) else []
    found = [_content(part.get("thinking")) for part in parts if _is_thought(part)]
    return "\n\n".join(thought for thought in found if thought) or None


def _count(value: object) -> int | None:
    """A count that can be one: no model takes or gives more tokens than this."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 1 << 40 else None  # type: ignore[operator, return-value]


def _start(text: str, most: int = 200) -> str:
    text = " ".join(writable(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"
