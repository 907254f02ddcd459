"""Reading replies: what is a whole answer and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clair_apo.llm.chat import CallFailed, Request, Usage, error_text, interpret, read, usage_of


def body(message: object, finish: object = "stop", **more: Any) -> str:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more})


def test_a_whole_answer() -> None:
    reply = interpret(
        body(
            {"content": "Yes.", "reasoning": "why"},
            model="m-1",
            usage={"prompt_tokens": 3, "completion_tokens": 2},
        ),
        at=5.0,
    )
    assert (reply.text, reply.reasoning, reply.model) == ("Yes.", "why", "m-1")
    assert (reply.tokens_in, reply.tokens_out, reply.at) == (3, 2, 5.0)
    assert interpret(body({"content": "x", "reasoning_content": "old"})).reasoning == "old"
    thought = {
        "type": "thinking",
        "thinking": [{"type": "text", "text": "Let me see."}],
    }  # as Mistral has it
    reply = interpret(body({"content": [thought, {"type": "text", "text": "Yes."}]}))
    assert (reply.text, reply.reasoning) == ("Yes.", "Let me see.")
    with pytest.raises(CallFailed, match="empty"):
        interpret(body({"content": [thought]}))
    assert (
        interpret(body({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})).text
        == "ab"
    )
    assert interpret(body({"content": "x"}, "eos_token")).text == "x"


def test_a_lone_surrogate_does_not_break_the_table() -> None:
    assert interpret(body({"content": "x"}).replace('"x"', '"\\ud83d x"')).text == "\ufffd x"
    assert interpret(body({"content": "x"}).replace('"x"', '"\\ud83d\\ude00"')).text == "\U0001f600"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (body({"content": "x"}, "length"), "truncated"),
        (body({"content": None}, "length"), "truncated"),
        (body({"content": "x"}, "content_filter"), "content_filter"),
        (body({"content": None, "refusal": "No."}), "refusal"),
        (body({"content": None}), "empty"),
        (body({"content": " \n"}), "empty"),
        (body({"content": "x"}, None), "invalid_reply"),
        (body({"content": None, "tool_calls": []}, "tool_calls"), "invalid_reply"),
        (body({"content": 3}), "invalid_reply"),
        (body({"content": [{"type": "image"}]}), "invalid_reply"),
        (body("x"), "invalid_reply"),
        ('{"choices": []}', "invalid_reply"),
        ('{"choices": {"a": 1}}', "invalid_reply"),
        ('{"error": {"message": "no"}}', "invalid_reply"),
        ("[1]", "invalid_reply"),
        ("null", "invalid_reply"),
        ("", "invalid_reply"),
        ("[" * 100_000, "invalid_reply"),
    ],
)
def test_what_is_no_answer(raw: str, kind: str) -> None:
    with pytest.raises(CallFailed) as caught:
        interpret(raw)
    assert caught.value.kind == kind
    assert caught.value.raw == raw


def test_odd_usage_counts_as_none() -> None:
    for usage in (
        None,
        5,
        [],
        {"prompt_tokens": "3"},
        {"prompt_tokens": -1},
        {"prompt_tokens": True},
        {"prompt_tokens": 10**30},
    ):
        assert usage_of(read(body({"content": "x"}, usage=usage))) == Usage()
    assert usage_of(read("no json")) == Usage()
    cached = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 99}}
    assert usage_of({"usage": cached}) == Usage(9, 2, 9)


@pytest.mark.parametrize(
    "shape",
    [
        {"error": {"message": "boom"}},
        {"error": "boom"},
        {"message": "boom"},
        {"detail": "boom"},
        {"detail": [{"msg": "boom"}]},
        {"error": {"message": {"detail": "boom"}}},
        "boom",
    ],
)
def test_error_words_in_every_shape(shape: object) -> None:
    assert error_text(shape) == "boom"


def test_keys_tell_requests_apart() -> None:
    def key(
        model: str = "m",
        text: str = "t",
        stage: str = "revise",
        content: bytes = b"c",
        **params: Any,
    ) -> bytes:
        return Request(model, [{"role": "user", "content": text}], params).key(stage, content)

    keys = [
        key(),
        key(model="n"),
        key(text="u"),
        key(stage="sample"),
        key(content=b"d"),
        key(temperature=1.0),
    ]
    assert len(set(keys)) == len(keys)
    assert key(temperature=1.0, top_p=0.5) == key(top_p=0.5, temperature=1.0)
