"""Streamed replies put together: the body is the one that a server would have sent without streaming."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_apo.llm.chat import CallFailed, interpret
from clair_apo.llm.stream import BrokenStream, StreamAssembler, StreamError, TooLong

LIMIT = 10_000_000
DONE = b"data: [DONE]\n\n"
NOT_WHOLE = "ended before the reply was whole"


def event(value: object, end: str = "\n") -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}{end}{end}".encode()


def choice(delta: object = None, finish: object = None, index: object = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, **more}


def chunk(delta: object = None, finish: object = None, index: object = 0, **more: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [choice(delta, finish, index)], **more})


def said(text: object) -> bytes:
    return chunk({"content": text})


STOP = chunk({}, "stop")


def body(*pieces: bytes) -> dict[str, Any]:
    """The body of a stream that comes in these pieces, read back; it always fits UTF-8."""
    assembler = StreamAssembler(LIMIT)
    for piece in pieces:
        assembler.feed(piece)
    text = assembler.body()
    text.encode()
    assert assembler.body() == text
    found: dict[str, Any] = json.loads(text)
    return found


def content(*pieces: bytes) -> Any:
    return body(*pieces)["choices"][0]["message"]["content"]


def outcome(*pieces: bytes) -> object:
    """The body, or what is wrong with the stream."""
    assembler = StreamAssembler(LIMIT)
    for piece in pieces:
        assembler.feed(piece)
    try:
        return assembler.done, assembler.body()
    except StreamError as error:
        return "error", str(error), error.raw
    except BrokenStream as error:
        return "broken", str(error)


USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
STREAM = (
    b"\xef\xbb\xbf: hello\n\n"
    + chunk({"role": "assistant", "content": ""}, id="c-1", model="m-1", created=7, usage=None)
    + said("Привет, ")
    + b": ping\r\n\r\n"
    + chunk({"content": "world \U0001f600\u2028\x85"}, service_tier="default", system_fingerprint="fp")
    + b"event: chunk\nid: 5\nretry: 100\r"
    + chunk({}, "stop").replace(b"\n", b"\r\n")
    + b'data: {"choices":\r\ndata: [],\r\n: more\r\ndata: "usage":\r\n'
    + event(USAGE).replace(b"}\n\n", b"}}\r\r")
    + DONE
)
TEXT = "Привет, world \U0001f600\u2028\x85"


def test_a_stream_is_the_body_that_was_not_streamed() -> None:
    assert body(STREAM) == {
        "object": "chat.completion",
        "id": "c-1",
        "model": "m-1",
        "created": 7,
        "service_tier": "default",
        "system_fingerprint": "fp",
        "usage": USAGE,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "finish_reason": "stop",
            }
        ],
    }
    assembler = StreamAssembler(LIMIT)
    assembler.feed(STREAM[:-1])
    assert not assembler.done
    assembler.feed(STREAM[-1:])
    assert assembler.done
    reply = interpret(assembler.body(), at=5.0)
    assert (reply.text, reply.model, reply.tokens_in, reply.tokens_out) == (TEXT, "m-1", 3, 2)


BAD_JSON = said("a") + b"data: {\n\n" + STOP + DONE
FAILED = said("a") + event({"error": {"message": "héé"}}) + STOP + DONE


@given(
    stream=st.sampled_from([STREAM, STREAM.replace(b"\n", b"\r"), BAD_JSON, FAILED]),
    cuts=st.lists(st.integers(0, len(STREAM))),
)
def test_any_split_gives_the_same(stream: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert outcome(*pieces) == outcome(stream)


@pytest.mark.parametrize("stream", [STREAM, BAD_JSON, FAILED])
def test_byte_by_byte(stream: bytes) -> None:
    assert outcome(*(stream[at : at + 1] for at in range(len(stream)))) == outcome(stream)


UNITS = st.text(st.characters() | st.sampled_from("\ud83d\ude00\n\r \ufeff"), max_size=12)


@given(content=st.lists(UNITS), reasoning=st.lists(UNITS), finish=st.sampled_from(["stop", "length", "x"]))
def test_any_deltas_read_as_one_message(content: list[str], reasoning: list[str], finish: str) -> None:
    def read(raw: str) -> object:
        try:
            reply = interpret(raw)
        except CallFailed as failed:
            return failed.kind, failed.message
        return reply.text, reply.reasoning or None

    deltas: list[dict[str, str]] = [{"reasoning": text} for text in reasoning]
    deltas += [{"content": text} for text in content]
    # Only escaped can a lone surrogate be in a stream; JSON joins two halves that stand side by side.
    stream = [event(json.dumps({"choices": [choice(delta)]})) for delta in deltas]
    message = {"content": "".join(content), "reasoning": "".join(reasoning)}
    plain = json.dumps({"choices": [{"message": message, "finish_reason": finish}]})
    assembler = StreamAssembler(LIMIT)
    for piece in [*stream, chunk({}, finish), DONE]:
        assembler.feed(piece)
    assert read(assembler.body()) == read(plain)


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        # framing
        (said("a") + STOP, "a"),  # without [DONE]
        (said("a") + STOP + b"data: [DONE]", "a"),
        (said("a") + STOP.rstrip(), "a"),
        (said("a") + STOP + b'data: {"choices": [], "us', "a"),  # what was cut off is not the reply
        (said("a") + STOP + "data: é".encode()[:-1], "a"),
        (said("a") + STOP + DONE + said("b") + b"data: {\n\n", "a"),
        (said("a") + STOP + DONE.strip() + b"\r\r\r" + said("b"), "a"),
        (b":\n\n:\n\n" + said("a") + b"data:\n\ndata: \n\ndata\n\n\n\n" + STOP, "a"),
        (said("a").replace(b"data: ", b"data:") + STOP, "a"),
        (b'data: {"choices": [{"delta":\ndata: {"content": "a"},\n: x\ndata:"index": 0}]}\n\n' + STOP, "a"),
        (b'error: x\ndatas: {\n{"a": 1}\n\n' + said("a") + STOP, "a"),
        (said("a\u2028b\x85\x0bc").replace(b"\n", b"\r") + STOP, "a\u2028b\x85\x0bc"),
        (b"\xef\xbb\xbf" + said("a") + STOP, "a"),
        (said("\ufeffa") + STOP, "\ufeffa"),
        # choices
        (said("a") + chunk({"content": "b"}, index=1) + chunk({}, "length", 1) + STOP, "a"),
        (event({"choices": [choice({"content": "b"}, index=1), choice({"content": "a"})]}) + STOP, "a"),
        (
            event({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]})
            + chunk(None, "stop", None),
            "a",
        ),
        (event({"choices": None}) + event({"type": "ping"}) + said("a") + STOP, "a"),
        (event({"error": None, "choices": [choice({"content": "a"}, "stop")]}), "a"),
        # content
        (said("a") + said(None) + said("") + said("b") + STOP, "ab"),
        (STOP, None),
        (said([{"type": "text", "text": "a"}]) + said("b") + said([]) + STOP, "ab"),
        (
            said([{"type": "output_text", "text": "a"}, {"type": "text", "text": "b"}]) + STOP,
            "ab",
        ),
        (
            said("a") + said("b") + said([{"type": "image"}]) + said("c") + STOP,
            [{"type": "text", "text": "ab"}, {"type": "image"}, {"type": "text", "text": "c"}],
        ),
        (said(3) + STOP, [3]),
        (
            chunk({"content": "a"}, "") + chunk({"content": "b"}, "stop") + chunk({}, "") + chunk(),
            "ab",
        ),
        # whole messages
        (event({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}), "a"),
        (event({"choices": [{"delta": None, "message": {"content": "a"}}]}) + STOP, "a"),
        (
            b"".join(
                event({"choices": [{"delta": {"content": new}, "message": {"content": so_far}}]})
                for new, so_far in [("a", "a"), ("b", "ab"), ("", "ab")]
            )
            + STOP,
            "ab",
        ),
        (
            said("a") + event({"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}),
            "ab",
        ),
        (said("a") + event({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}), "a"),
        # surrogates
        (event('{"choices": [{"delta": {"content": "\\ud83d"}}]}') * 2 + STOP, "\ud83d\ud83d"),
        (
            event('{"choices": [{"delta": {"content": "x\\ud83d"}}]}')
            + event('{"choices": [{"delta": {"content": "\\ude00y"}}]}')
            + STOP,
            "x\U0001f600y",
        ),
    ],
)
def test_content(stream: bytes, text: object) -> None:
    assert content(stream) == text


def test_what_comes_beside_the_content_keeps_its_name() -> None:
    message = body(
        chunk({"role": "model", "reasoning": "a"}),
        chunk({"role": "", "reasoning": "b", "reasoning_content": "c"}),
        chunk({"refusal": "N"}),
        chunk({"refusal": "o.", "tool_calls": [{"index": 0}]}),
        STOP,
    )["choices"][0]["message"]
    assert message == {
        "role": "model",
        "content": None,
        "reasoning": "ab",
        "reasoning_content": "c",
        "refusal": "No.",
    }


def test_a_whole_message_keeps_what_it_does_not_repeat() -> None:
    message = body(
        chunk({"reasoning": "why"}),
        event({"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}),
    )["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("why", "a")


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([{"usage": None}, {"usage": {"completion_tokens": 1}}, {"usage": USAGE}, {"usage": None}], USAGE),
        ([{"usage": USAGE}, {"usage": {}}], USAGE),
        ([{}], None),
    ],
)
def test_usage_is_the_last_that_was_sent(chunks: list[dict[str, Any]], expected: object) -> None:
    assert body(*(chunk({"content": "a"}, **more) for more in chunks), STOP).get("usage") == expected


def test_names_that_are_missing_on_some_chunks() -> None:
    found = body(
        chunk(model="", id=""), chunk(model="m", id="c", created=0), chunk(model=None, id=""), STOP
    )
    assert (found["model"], found["id"], found["created"]) == ("m", "c", 0)
    assert "service_tier" not in found


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (said("a") + DONE, "invalid_reply"),  # no finish_reason: nothing says that the text is whole
        (chunk({"content": "a"}, 3) + DONE, "invalid_reply"),
        (DONE, "invalid_reply"),
        (said("a") + chunk({}, "length"), "truncated"),
        (said("a") + chunk({}, "content_filter"), "content_filter"),
        (chunk({"tool_calls": []}, "tool_calls"), "invalid_reply"),
        (chunk({"refusal": "No."}, "stop"), "refusal"),
        (said([{"type": "image"}]) + STOP, "invalid_reply"),
        (said("a") + said(3) + STOP, "invalid_reply"),
        (said(None) + STOP, "empty"),
    ],
)
def test_what_is_no_answer_is_judged_as_without_a_stream(stream: bytes, kind: str) -> None:
    with pytest.raises(CallFailed) as caught:
        interpret(json.dumps(body(stream)))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", NOT_WHOLE),
        (said("a"), NOT_WHOLE),
        (chunk({}, ""), NOT_WHOLE),
        (said("a") + STOP[:-5], NOT_WHOLE),
        (said("a") + chunk({}, "stop", 1), NOT_WHOLE),
        (b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}', NOT_WHOLE),
        (BAD_JSON, "not JSON"),
        (b"data: {}\ndata: {}\n\n" + STOP, "not JSON"),
        (b"data: \xff\n\n" + STOP, "not JSON"),
        (said("é").replace(b"\xc3", b"") + STOP, "not JSON"),
        (event("[" * 100_000) + STOP, "not JSON"),
        (event("[1]") + STOP, "no JSON object"),
        (event("null") + STOP, "no JSON object"),
        (event({"choices": {"0": {}}}) + STOP, "without readable choices"),
        (event({"choices": ["a"]}) + STOP, "without readable choices"),
        (chunk("a") + STOP, "without a readable message"),
        (event({"choices": [{"message": ["a"]}]}) + STOP, "without a readable message"),
        (said("a") + event({"choices": [{"message": {"content": "b"}}]}) + STOP, "unlike the pieces"),
        (BAD_JSON + event({"error": "late"}), "not JSON"),
    ],
)
def test_broken(stream: bytes, message: str) -> None:
    assembler = StreamAssembler(LIMIT)
    assembler.feed(stream)
    for _ in range(2):
        with pytest.raises(BrokenStream, match=message):
            assembler.body()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": {"message": "overloaded", "code": 503}}, "the server reports: overloaded"),
        ({"error": "no"}, "the server reports: no"),
        ({"object": "error", "message": "bad", "code": 400}, "the server reports: bad"),
        (
            {"error": {"message": "m"}, "choices": [choice({"content": ""}, "error")]},
            "the server reports: m",
        ),
    ],
)
@pytest.mark.parametrize("before", [b"", said("a"), said("a") + STOP])
@pytest.mark.parametrize("after", [b"", DONE, STOP + b"data: {\n\n" + DONE])
def test_errors_of_the_server(value: object, message: str, before: bytes, after: bytes) -> None:
    assembler = StreamAssembler(LIMIT)
    assembler.feed(before + b"event: error\n" + event(value) + after)
    assert assembler.done == bool(after)
    with pytest.raises(StreamError) as caught:
        assembler.body()
    assert str(caught.value) == message
    assert json.loads(caught.value.raw) == value


def test_a_stream_without_choices_is_a_body_without_any() -> None:
    assert body(event({"choices": [], "usage": USAGE}), DONE)["choices"] == []


def test_nothing_between_the_halves_of_a_line_end() -> None:
    piece = b'data: {"choices": [{"delta":\r\ndata: {"content": "a"}}]}\r\n\r\n'
    assert content(*piece.replace(b"\r", b"\r|").replace(b"|", b"||").split(b"|"), STOP) == "a"


def test_json_of_any_depth_is_answered() -> None:
    def deeper(assembler: StreamAssembler, calls: int) -> str:
        return deeper(assembler, calls - 1) if calls else assembler.body()

    for depth in range(850, 1000):
        deep = "[" * depth + "]" * depth
        for text in (f'{{"error": {{"x": {deep}}}}}', f'{{"usage": {deep}, "choices": []}}'):
            assembler = StreamAssembler(LIMIT)
            assembler.feed(event(text) + STOP)
            with contextlib.suppress(BrokenStream, StreamError):  # and never RecursionError
                assert json.loads(deeper(assembler, 20))


def test_the_limit() -> None:
    stream = said("a") + STOP
    assembler = StreamAssembler(len(stream))
    assembler.feed(stream)
    assembler.body()
    for _ in range(2):
        with pytest.raises(TooLong, match="longer than"):
            assembler.feed(b"\n")
    with pytest.raises(BrokenStream):
        assembler.body()


@pytest.mark.parametrize("size", [1, 7, 1 << 12, 1 << 30])
def test_a_long_stream_of_tokens(size: int) -> None:
    tokens = 20_000
    stream = chunk({"content": "tok "}, id="chatcmpl-1", model="m") * tokens + STOP + DONE
    assert len(stream) > 2_000_000
    assert content(*(stream[at : at + size] for at in range(0, len(stream), size))) == "tok " * tokens
