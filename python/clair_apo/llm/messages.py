"""Anthropic's Messages API: its requests from ours, and its replies as chat completions.

Facts: https://platform.claude.com/docs/en/api/messages/create, …/api/errors, …/handling-stop-reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Later versions (2026-10-21) take no temperature and no top_p (…/docs/en/api/versioning).
VERSION = "2023-06-01"
# A request must say how long its reply may be; the oldest models allow no more than this.
MAX_TOKENS = 4096

# What a reply's end is called by chat completions.
_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def body_of(model: str, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body of a request. What the system says has a field of its own there, and the effort of
    reasoning is a part of `output_config`."""
    system = [m["content"] for m in messages if m["role"] in ("system", "developer")]
    said = [dict(m) for m in messages if m["role"] not in ("system", "developer")]
    body = {"model": model, "max_tokens": MAX_TOKENS, "messages": said, **params}
    if system:
        body["system"] = "\n\n".join(system)
    if (effort := body.pop("reasoning_effort", None)) is not None:
        body["output_config"] = {"effort": effort, **(body.get("output_config") or {})}
    return body


def is_message(body: object) -> bool:
    """Whether a body is a reply of this API."""
    return isinstance(body, dict) and body.get("type") == "message" and "choices" not in body


def as_completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """The reply as a chat completion. What cannot be told by one is left for its reader to judge: an end
    that is no end of an answer keeps its name, and content other than text makes no text."""
    message: dict[str, Any] = {"role": "assistant", "content": body.get("content")}
    reason = body.get("stop_reason")
    if reason == "refusal":
        details = body.get("stop_details")
        why = details.get("explanation") if isinstance(details, dict) else None
        message["refusal"] = why if isinstance(why, str) and why.strip() else "stop_reason is refusal"
    finish = _FINISH.get(reason, reason) if isinstance(reason, str) else None
    return {
        "model": body.get("model"),
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": _usage(body.get("usage")),
    }


def status_of(error_type: str) -> int | None:
    """The HTTP status that goes with the type of an error; None for an unknown one."""
    return _STATUS.get(error_type)


def _usage(usage: object) -> object:
    """Tokens as chat completions count them: `input_tokens` leaves out what was read from or written to
    the cache."""
    if not isinstance(usage, dict):
        return None
    parts = [usage.get(f"{name}input_tokens") for name in ("", "cache_read_", "cache_creation_")]
    known = [part for part in parts if isinstance(part, int)]
    return {
        "prompt_tokens": sum(known) if isinstance(parts[0], int) else None,
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": {"cached_tokens": parts[1]},
    }
