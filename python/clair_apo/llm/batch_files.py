"""The files of batches: one request a line, one result a line, in any order.

OpenAI's lines, which `vllm run-batch` reads and writes as well, and Anthropic's. A line is known by its
`custom_id`, which is the call's place in the ledger: content key and repeat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from clair_apo.errors import ClairError
from clair_apo.llm.chat import NOT_JSON, CallFailed, Request, Sent, read
from clair_apo.llm.endpoint import ANTHROPIC, DEFAULT_URLS, OPENAI, Endpoint
from clair_apo.llm.messages import body_of
from clair_apo.llm.secrets import Secrets
from clair_apo.llm.wire import refusal, status_inside

# Files for `vllm run-batch`, which no service takes.
FILES = "files"
CALL = "/v1/chat/completions"

Call = tuple[bytes, int]  # content key and repeat


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may hold."""

    calls: int
    size: int  # bytes of the file


# https://platform.openai.com/docs/api-reference/batch/create: 50,000 and 200 MB;
# https://platform.claude.com/docs/en/api/creating-message-batches: 100,000 and 256 MB, of which some is
# around the lines.
LIMITS = {
    OPENAI: Limits(50_000, 200_000_000),
    ANTHROPIC: Limits(100_000, 255_000_000),
    FILES: Limits(50_000, 200_000_000),
}


def custom_id(call: Call) -> str:
    """The name of a call: letters, digits and a dash, less than the 64 characters that services allow."""
    return f"{call[0].hex()}-{call[1]}"


def call_of(name: object) -> Call | None:
    """The call of a name; None for what is none."""
    if not isinstance(name, str):
        return None
    key, dash, repeat = name.partition("-")
    try:
        call = bytes.fromhex(key), int(repeat)
    except ValueError:
        return None
    return call if dash and custom_id(call) == name else None


def request_line(service: str, url: str, call: Call, request: Request) -> bytes:
    """A request as its line, without an end of line."""
    line: dict[str, Any] = {"custom_id": custom_id(call)}
    if service == ANTHROPIC:
        line["params"] = body_of(request.model, request.messages, request.params)
    else:
        body = request.body()
        if url == DEFAULT_URLS[OPENAI] and "max_tokens" in body:
            # Nothing can be worded anew in a batch, and not all of OpenAI's models take the older name.
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
        line |= {"method": "POST", "url": CALL, "body": body}
    try:
        return orjson.dumps(line)
    except TypeError:  # a number of more than 64 bits, from --extra-body
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()


class Requests:
    """The requests of a batch on disk: which calls they are, and what each asks. Raises ClairError for a
    damaged file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at: dict[Call, int] = {}
        with path.open("rb") as file:
            at = 0
            for number, line in enumerate(file, 1):
                body = read(line.decode("utf-8", "replace"))
                call = call_of(body.get("custom_id")) if isinstance(body, dict) else None
                if call is None:
                    raise ClairError(f"{path}: line {number} is no request of a batch; the file is damaged")
                self._at[call] = at
                at += len(line)

    def __contains__(self, call: object) -> bool:
        return call in self._at

    def __len__(self) -> int:
        return len(self._at)

    @property
    def calls(self) -> set[Call]:
        return set(self._at)

    def request(self, call: Call) -> Request:
        """The request again, for its tokens to be counted."""
        with self._path.open("rb") as file:
            file.seek(self._at[call])
            line = orjson.loads(file.readline())
        body = line.get("body") or line["params"]
        system = [{"role": "system", "content": body["system"]}] if "system" in body else []
        return Request(body["model"], [*system, *body["messages"]])


@dataclass(frozen=True, slots=True)
class Result:
    """One line of results. `outcome` is None where the batch ended before the call was made; such a call
    costs nothing and can be asked again."""

    call: Call | None
    outcome: Sent | CallFailed | None


def results(path: Path, endpoint: Endpoint) -> Iterator[Result | None]:
    """The results of a file, None for each line that cannot be read. Keys in it are blanked."""
    secrets = Secrets(endpoint.url, endpoint.key, dict(endpoint.headers))
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            body = read(secrets.blank(line.decode("utf-8", "replace")))
            yield _result(body, endpoint.shown) if isinstance(body, dict) else None


def _result(line: Mapping[str, Any], where: str) -> Result | None:
    result = line.get("result")
    try:
        outcome = _of_anthropic(result, where) if result is not None else _of_openai(line, where)
    except (KeyError, TypeError, AttributeError):
        return None
    return Result(call_of(line.get("custom_id")), outcome)


def _of_openai(line: Mapping[str, Any], where: str) -> Sent | CallFailed | None:
    response, error = line.get("response"), line.get("error")
    if response is None:
        code = error["code"] if isinstance(error, dict) and "code" in error else None
        if code in ("batch_expired", "batch_cancelled"):
            return None
        raw = _text({"error": error})
        if code == "request_timeout":
            return CallFailed("timeout", f"{where}: the call timed out inside the batch", raw=raw)
        return refusal(where, status_inside(raw), {}, raw).failure
    status, body = response["status_code"], response.get("body")
    if status == 200 and body is not None:
        return Sent(_text(body), 1, 0.0, response.get("request_id"))
    raw = _text(error if body is None else body)
    return refusal(where, int(status), {}, raw).failure


def _of_anthropic(result: Mapping[str, Any], where: str) -> Sent | CallFailed | None:
    kind = result["type"]
    if kind in ("canceled", "expired"):
        return None
    if kind == "succeeded":
        return Sent(_text(result["message"]), 1, 0.0)
    raw = _text(result["error"])
    return refusal(where, status_inside(raw), {}, raw).failure


def _text(body: Any) -> str:
    """The body as JSON again, as UTF-8 can hold it."""
    if body is None or body is NOT_JSON:
        raise TypeError("no body")
    try:
        return orjson.dumps(body).decode()
    except TypeError:  # lone surrogates, or numbers of more than 64 bits
        return json.dumps(body)
