"""A streamed reply put together: server-sent events in, the JSON text of a plain body out, which
`chat.interpret` then judges as if the reply had not been streamed. Chat completions and Anthropic's
Messages have a class each.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from clair_apo.llm.chat import error_text

_BOM = b"\xef\xbb\xbf"
# What a body says beside its choices. Chunks repeat it, some of them with null or nothing in its place.
_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier", "usage")
_PIECES = ("content", "reasoning", "reasoning_content", "refusal")  # what a message says in pieces
_TOO_DEEP = "the stream holds JSON that is nested too deeply"


class BrokenStream(Exception):
    """The stream ended before the reply was whole, or held something that is no event."""


class StreamError(Exception):
    """The server reported an error inside the stream; `raw` is the JSON text of that event."""

    def __init__(self, message: str, raw: str) -> None:
        super().__init__(message)
        self.raw = raw


class TooLong(Exception):
    """The stream is longer than it may be."""


class StreamAssembler:
    """Takes the bytes of one stream as they come, at most `limit` of them, and gives the body at its end.

    `done` is set once the server has said [DONE]. What is wrong with the stream is said by `body`.
    """

    def __init__(self, limit: int) -> None:
        self.done = False
        self._limit = limit
        self._bytes = 0
        self._begun_line: list[bytes] = []
        self._first_line = True
        self._after_cr = False
        self._data: list[bytes] = []  # the data lines of the event that has begun
        self._failure: BrokenStream | StreamError | None = None  # the first one; nothing counts after it
        self._head: dict[str, Any] = {}
        self._answered = False
        self._role = "assistant"
        self._pieces: dict[str, list[Any]] = {}
        self._finish: str | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes, split anywhere. Raises TooLong beyond the limit."""
        self._bytes += len(data)
        if self._bytes > self._limit:
            raise TooLong(f"the stream is longer than {self._limit:,} bytes")
        if not data:
            return
        if self._after_cr:
            data = data.removeprefix(b"\n")  # the second half of a CRLF
        self._after_cr = data.endswith(b"\r")
        for line in data.splitlines(keepends=True):  # of bytes: at LF, CR and CRLF only
            if self.done:
                return
            self._begun_line.append(line)
            if line.endswith((b"\n", b"\r")):
                self._end_line()

    def body(self) -> str:
        """The body, once the stream has ended. Raises BrokenStream or StreamError."""
        # Some servers leave out the last empty line. What is left of an object that was cut off is no JSON.
        if self._begun_line:
            self._end_line()
        self._end_event(cut=True)
        if self._failure is not None:
            raise self._failure
        if self._bytes > self._limit or not (self.done or self._finish):
            raise BrokenStream("the stream ended before the reply was whole")
        try:
            return _json(self._whole())
        except RecursionError as error:
            raise BrokenStream(_TOO_DEEP) from error

    def _whole(self) -> dict[str, Any]:
        message = {"role": self._role, "content": None}
        message.update((name, _joined(pieces)) for name, pieces in self._pieces.items())
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return {"object": "chat.completion", **self._head, "choices": [choice] if self._answered else []}

    def _end_line(self) -> None:
        line = b"".join(self._begun_line).rstrip(b"\r\n")
        self._begun_line = []
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if not line:
            self._end_event()
        elif name == b"data":  # comments have no name, and no other field matters
            self._data.append(value)  # a space behind the colon is nothing to JSON

    def _end_event(self, cut: bool = False) -> None:
        data = b"\n".join(self._data).strip()
        self._data = []
        if data == b"[DONE]":
            self.done = True
        elif data and self._failure is None:
            try:
                text = data.decode()
                event = json.loads(text)
            except (ValueError, RecursionError):
                if not cut:
                    self._failure = BrokenStream("the stream holds an event that is not JSON")
                return
            try:
                self._take(event, text)
            except (BrokenStream, StreamError) as failure:
                self._failure = failure
            except RecursionError:
                self._failure = BrokenStream(_TOO_DEEP)

    def _take(self, event: object, text: str) -> None:
        if not isinstance(event, dict):
            raise BrokenStream("the stream holds an event that is no JSON object")
        if event.get("error") or event.get("object") == "error":
            raise StreamError(f"the server reports: {error_text(event)}", text)
        self._head.update((name, event[name]) for name in _HEAD if event.get(name) not in (None, "", {}))
        choices = event.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise BrokenStream("the stream holds an event without readable choices")
        for position, choice in enumerate(choices):
            index = choice.get("index")
            if (position if index is None else index) == 0:
                self._answered = True
                self._take_choice(choice)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish:  # some servers send "" until the end
            self._finish = finish
        # A message beside a delta repeats what was said so far; one without it is the whole reply.
        whole = choice.get("delta") is None
        message = choice.get("message" if whole else "delta") or {}
        if not isinstance(message, dict):
            raise BrokenStream("the stream holds a choice without a readable message")
        if isinstance(message.get("role"), str) and message["role"]:
            self._role = message["role"]
        for name in _PIECES:
            value = message.get(name)
            if value in (None, "", []):
                continue
            pieces = [_piece(part) for part in (value if isinstance(value, list) else [value])]
            before = self._pieces.setdefault(name, [])
            if whole:
                # Whether any other message replaces the pieces or follows on them cannot be told.
                if not _text(pieces).startswith(_text(before)):
                    raise BrokenStream("the stream holds a message unlike the pieces before it")
                before.clear()
            before.extend(pieces)


class MessageAssembler(StreamAssembler):
    """The same for a stream of Anthropic's Messages API, which ends with `message_stop`.

    Events: https://platform.claude.com/docs/en/build-with-claude/streaming.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._said: dict[tuple[int, str], list[Any]] = {}

    def _whole(self) -> dict[str, Any]:
        for (index, name), pieces in self._said.items():
            self._blocks[index][name] = _text(pieces)
        return {**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]}

    def _take(self, event: object, text: str) -> None:
        if not isinstance(event, dict):
            raise BrokenStream("the stream holds an event that is no JSON object")
        kind = event.get("type")
        if kind == "error":
            raise StreamError(f"the server reports: {error_text(event)}", text)
        try:
            if kind == "message_start":
                self._message = dict(event["message"])
            elif kind == "content_block_start":
                self._begin_block(int(event["index"]), dict(event["content_block"]))
            elif kind == "content_block_delta":
                self._add(int(event["index"]), event["delta"])
            elif kind == "message_delta":
                self._message.update(event["delta"])
                told = {name: value for name, value in event.get("usage", {}).items() if value is not None}
                self._message["usage"] = {**(self._message.get("usage") or {}), **told}
            elif kind == "message_stop":
                self.done = True
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BrokenStream(f"the stream holds an event of type {kind} that cannot be read") from None

    def _begin_block(self, index: int, block: dict[str, Any]) -> None:
        self._blocks[index] = block
        for name in ("text", "thinking"):
            if isinstance(block.get(name), str):
                self._said[index, name] = [block[name]]

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        for name in ("text", "thinking"):  # signatures, and input of tools, are nothing to read
            if delta["type"] == f"{name}_delta":
                self._said[index, name].append(delta[name])


def _piece(part: Any) -> Any:
    """The text of a content part that has one; anything else as it is, for `interpret` to judge."""
    if isinstance(part, dict) and part.get("type") in ("text", "output_text"):
        text = part.get("text")
        return text if isinstance(text, str) else part
    return part


def _joined(pieces: list[Any]) -> Any:
    """One text where every piece is text, else content parts in which pieces side by side are one."""
    if all(isinstance(piece, str) for piece in pieces):
        return _text(pieces)
    parts: list[Any] = []
    for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        run = list(group)
        parts.extend([{"type": "text", "text": _text(run)}] if is_text else run)
    return parts


def _text(pieces: list[Any]) -> str:
    """The text among the pieces. Two halves of a surrogate pair that meet become their character."""
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _json(body: dict[str, Any]) -> str:
    """JSON that UTF-8 can hold: where a lone surrogate stands in it, everything is escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":"))
    return text
