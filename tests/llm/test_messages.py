"""Anthropic's Messages API: requests, replies, errors, streams."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from clair_apo.llm.chat import CallFailed, interpret, read, usage_of
from clair_apo.llm.endpoint import normal_url
from clair_apo.llm.messages import body_of
from clair_apo.llm.stream import BrokenStream, MessageAssembler, StreamError
from clair_apo.llm.wire import refusal, status_inside
from messages_api import USAGE, events, fault, whole

THOUGHT = {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"}


def test_a_request() -> None:
    said = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "developer", "content": "In English."},
        {"role": "user", "content": "And?"},
    ]
    params = {
        "max_tokens": 9,
        "temperature": 0.5,
        "thinking": {"type": "adaptive"},
        "reasoning_effort": "low",
    }
    body = body_of("claude-x", said, params)
    assert fault(body) is None
    assert body == {
        "model": "claude-x",
        "system": "Be short.\n\nIn English.",
        "messages": [said[1], said[2], said[4]],
        "max_tokens": 9,
        "temperature": 0.5,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low"},
    }
    assert body_of("m", said[1:2], {}) == {"model": "m", "messages": said[1:2], "max_tokens": 4096}


def test_a_whole_answer() -> None:
    parts = [THOUGHT, {"type": "text", "text": "Yes"}, {"type": "text", "text": ", so."}]
    reply = interpret(json.dumps(whole(None, content=parts)), at=5.0)
    assert (reply.text, reply.reasoning, reply.model) == ("Yes, so.", "Let me see.", "claude-x")
    assert (reply.tokens_in, reply.tokens_out, reply.at) == (10, 5, 5.0)
    assert interpret(json.dumps(whole("x", "stop_sequence"))).text == "x"


def test_tokens_of_the_cache_are_input() -> None:
    told = {**USAGE, "cache_read_input_tokens": 70, "cache_creation_input_tokens": 20}
    usage = usage_of(whole("x", usage=told))
    assert (usage.tokens_in, usage.cached, usage.tokens_out) == (100, 70, 5)
    for odd in (None, {}, "x", {"input_tokens": "9", "cache_read_input_tokens": 4}):
        assert usage_of(whole("x", usage=odd)).tokens_in is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (whole("x", "max_tokens"), "truncated"),
        (whole(None, "refusal"), "refusal"),
        (whole("I began", "refusal"), "refusal"),
        (whole("x", "model_context_window_exceeded"), "context_length"),
        (whole("x", "tool_use"), "invalid_reply"),
        (whole("x", "pause_turn"), "invalid_reply"),
        (whole("x", None), "invalid_reply"),
        (whole(None), "empty"),
        (whole(None, content=[THOUGHT]), "empty"),
        (whole(None, content=[{"type": "tool_use", "name": "f"}]), "invalid_reply"),
        (whole(None, content=3), "invalid_reply"),
        (whole(None, content=["x"]), "invalid_reply"),
    ],
)
def test_what_is_no_answer(body: dict[str, Any], kind: str) -> None:
    with pytest.raises(CallFailed) as failed:
        interpret(json.dumps(body))
    assert failed.value.kind == kind


def test_a_refusal_says_why() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "This is about weapons."}
    with pytest.raises(CallFailed, match="about weapons"):
        interpret(json.dumps(whole(None, "refusal", stop_details=details)))


def error(kind: str, words: str = "no", **more: Any) -> str:
    return json.dumps({"type": "error", "error": {"type": kind, "message": words, **more}})


@pytest.mark.parametrize(
    ("status", "raw", "kind", "again", "stops"),
    [
        (400, error("invalid_request_error"), "http_4xx", False, False),
        (
            400,
            error("invalid_request_error", "prompt is too long: 9 tokens > 8"),
            "context_length",
            False,
            False,
        ),
        (
            400,
            error("invalid_request_error", "Your credit balance is too low"),
            "rate_limited",
            False,
            True,
        ),
        (
            400,
            error("invalid_request_error", "You have reached your specified API usage limits."),
            "rate_limited",
            False,
            True,
        ),
        (401, error("authentication_error"), "http_4xx", False, True),
        (402, error("billing_error"), "rate_limited", False, True),
        (404, error("not_found_error"), "http_4xx", False, False),
        (413, error("request_too_large"), "context_length", False, False),
        (429, error("rate_limit_error"), "rate_limited", True, False),
        (
            429,
            error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
            "rate_limited",
            False,
            True,
        ),
        (500, error("api_error"), "http_5xx", True, False),
        (529, error("overloaded_error"), "http_5xx", True, False),
    ],
)
def test_errors(status: int, raw: str, kind: str, again: bool, stops: bool) -> None:
    answer = refusal("http://x", status, {}, raw)
    assert (answer.failure.kind, answer.again, answer.stop is not None) == (kind, again, stops)
    assert status_inside(error("overloaded_error")) == 529


@pytest.mark.parametrize(
    "given",
    ["http://h/x", "http://h/x/", "http://h/x/v1", "http://h/x/v1/messages", "http://h/x/messages/"],
)
def test_the_base_url_is_anthropics(given: str) -> None:
    assert normal_url(given, api="anthropic") == "http://h/x"


def assembled(data: bytes, dice: random.Random) -> str:
    assembler = MessageAssembler(1 << 20)
    while data:
        size = dice.randint(1, 40)
        assembler.feed(data[:size])
        data = data[size:]
    return assembler.body()


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_is_as_the_plain_body(seed: int) -> None:
    dice = random.Random(seed)
    text = "".join(dice.choices('ab \n{}"\\\u00e9\u4e2d\U0001f600', k=dice.randint(1, 200)))
    blocks = [{"type": "text", "text": text}]
    if dice.random() < 0.5:
        blocks.insert(0, {"type": "thinking", "thinking": text[::-1], "signature": ""})
    plain = whole(None, dice.choice(["end_turn", "max_tokens"]), content=blocks)
    data = events(plain, dice.randint(1, 9)).encode()
    assert read(assembled(data, dice)) == plain
    with pytest.raises(BrokenStream):
        assembled(data[: data.rindex(b"event: message_delta")], dice)


def test_an_error_inside_a_stream() -> None:
    data = events(whole("x" * 50))
    begin = data[: data.index("event: message_delta")]
    with pytest.raises(StreamError) as failed:
        assembled(
            (begin + f"event: error\ndata: {error('overloaded_error')}\n\n").encode(), random.Random(1)
        )
    assert status_inside(failed.value.raw) == 529


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "message_start", "message": None},
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_delta", "index": 4, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": 3},
        {"type": "message_delta", "delta": 3},
    ],
)
def test_a_broken_event(bad: dict[str, Any]) -> None:
    data = events(whole("x")).replace("event: ping", f"data: {json.dumps(bad)}\n\nevent: ping")
    with pytest.raises(BrokenStream):
        assembled(data.encode(), random.Random(2))
