"""A client for any OpenAI-compatible chat-completions endpoint, and for Anthropic's Messages API.

httpx over aiohttp's connections: without the pool of plain httpx, which stalls beyond a hundred of them.
All calls go to one place, so they are handed to httpx's transport itself: its client decides anew for
each call what is the same for all (URL, headers, cookies, proxy).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from clair_apo.errors import ClairError, StoppedEarly, UsageError
from clair_apo.llm.chat import CallFailed, Request, Sent, State
from clair_apo.llm.messages import VERSION, body_of
from clair_apo.llm.pacing import Pacer, Patience, Turn, own_wait
from clair_apo.llm.secrets import Secrets, basic_auth, shown_url
from clair_apo.llm.stream import BrokenStream, MessageAssembler, StreamAssembler, StreamError, TooLong
from clair_apo.llm.wire import (
    Refusal,
    dislikes_stream_options,
    other_cap,
    refusal,
    status_inside,
    told_status,
)

OPENAI, ANTHROPIC = "openai", "anthropic"
APIS = (OPENAI, ANTHROPIC)
DEFAULT_URL = "https://api.openai.com/v1"
# As Anthropic's own clients have it: they add /v1 themselves, and so does ours.
DEFAULT_URLS = {OPENAI: DEFAULT_URL, ANTHROPIC: "https://api.anthropic.com"}
_URL_VARIABLES = {OPENAI: "OPENAI_BASE_URL", ANTHROPIC: "ANTHROPIC_BASE_URL"}
# What a base URL may be given with, and what follows on it.
_ENDINGS = {OPENAI: ("/chat/completions",), ANTHROPIC: ("/messages", "/v1")}
_PATHS = {OPENAI: "", ANTHROPIC: "/v1"}
_CALLS = {OPENAI: "/chat/completions", ANTHROPIC: "/messages"}
CONNECT_SECONDS = 15.0
# Shorter than the five seconds after which uvicorn closes an idle connection: a request that is sent
# into a closing one is lost.
KEEPALIVE_SECONDS = 4.0
# A server that asks for more patience than this gets the row recorded as rate limited instead; one that
# says so to so many calls on end has nothing for this run.
LONGEST_RETRY_AFTER = 120.0
LONG_REFUSALS = 10
# A call that ran into the time limit may have been paid for, and takes as long again.
TIMEOUT_RETRIES = 2
# No answer is as long as this; a body that is would take many times its size to read.
MAX_REPLY_BYTES = 32 << 20
TOO_LONG = f"the reply is longer than {MAX_REPLY_BYTES >> 20} MiB"
REQUEST_IDS = ("x-request-id", "request-id", "apim-request-id")
STREAM_BEGINS = ("data:", "event:", ": ")
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to call, and how. `url` is without `/chat/completions`, for Anthropic's API without
    `/v1/messages`; `key` may be None. `rpm` and `tpm`
    are requests and tokens a minute; `headers` are further ones, as pairs."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    retries: int = 6
    concurrency: int = 64
    rpm: float | None = None
    tpm: float | None = None
    stream: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    api: str = OPENAI

    @property
    def base(self) -> str:
        """What all paths of the API follow on, without a query and credentials."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]  # aiohttp takes no credentials beside a header of ours
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/") + _PATHS[self.api], "", ""))

    def at(self, path: str) -> str:
        """The URL of a path of the API."""
        query = urlsplit(self.url).query
        return f"{self.base}{path}" + (f"?{query}" if query else "")

    @property
    def calls(self) -> str:
        """The path of a call."""
        return _CALLS[self.api]

    def request_headers(self) -> dict[str, str]:
        """The headers of every request: whose it is, and the API's version."""
        found = {"User-Agent": "clair-apo"}
        if self.api == ANTHROPIC:
            found["anthropic-version"] = VERSION
        if self.key:
            found |= (
                {"x-api-key": self.key}
                if self.api == ANTHROPIC
                else {"Authorization": f"Bearer {self.key}"}
            )
        elif (basic := basic_auth(self.url)) is not None:
            found["Authorization"] = f"Basic {basic}"
        return found | dict(self.headers)

    @property
    def shown(self) -> str:
        """The URL as it may be shown and stored: without user, password and query values."""
        return shown_url(self.url)


def normal_url(url: str, given: str = "what is given as a URL", api: str = OPENAI) -> str:
    """`url` without a trailing slash or `/chat/completions` (`/v1/messages`). Raises UsageError for no
    http URL, in which `given` says where it is from."""
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:  # it is not shown: it may be a key that took the wrong flag
        raise UsageError(f"{given} is not a URL such as http://localhost:8000/v1")
    path = parts.path.rstrip("/")
    for ending in _ENDINGS[api]:
        path = path.removesuffix(ending).rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class EndpointClient:
    """Sends requests, retrying what may pass. One instance serves a whole run; close it at the end.

    `on_retry` is called with the kind of each failed try, for the live view.
    """

    def __init__(self, endpoint: Endpoint, on_retry: Callable[[str], None] | None = None) -> None:
        self.endpoint = endpoint
        self.pacer = Pacer(endpoint.concurrency, endpoint.rpm, endpoint.tpm)
        self._on_retry = on_retry or (lambda kind: None)
        self._wording = _Wording(endpoint)
        self._has_moved: str | None = None
        self._long_refusals = 0
        self._tokens_out = 256.0  # of a reply, of late
        self._assembler = MessageAssembler if endpoint.api == ANTHROPIC else StreamAssembler
        self._url = httpx.URL(endpoint.at(endpoint.calls))
        self._models_url = httpx.URL(endpoint.at("/models"))
        self._secrets = Secrets(endpoint.url, endpoint.key, dict(endpoint.headers))
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if endpoint.stream else "application/json",
            "Accept-Encoding": "gzip, deflate",  # what httpx unpacks wherever it is installed
        }
        self._headers = httpx.Headers(headers)
        self._headers.update(endpoint.request_headers())
        # The whole call has one deadline of its own; reading may be silent for all of it.
        timeout = httpx.Timeout(endpoint.timeout, connect=min(CONNECT_SECONDS, endpoint.timeout), pool=None)
        self._extensions = {"timeout": timeout.as_dict()}
        connections = max(endpoint.concurrency, 1)
        try:
            self._transport = AiohttpTransport(
                proxy=_proxy_of(endpoint.base),
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=KEEPALIVE_SECONDS,
                ),
            )
        except OSError as error:
            raise ClairError(
                f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error}"
            ) from error

    def halt(self) -> None:
        self.pacer.halt()

    def state(self) -> State:
        return State(self.pacer.in_flight, self.pacer.allowed, self.pacer.paused_for)

    async def close(self) -> None:
        self.pacer.close()
        await self._transport.aclose()

    async def send(self, request: Request, repeat: int = 0) -> Sent:
        """The body of a 200 reply. Raises CallFailed once the tries are used up or where another try
        cannot help, StoppedEarly where no row could do better (wrong key, no quota)."""
        begun = time.monotonic()
        patience = Patience(self.endpoint.retries)
        tries = 0
        while True:
            turn = await self.pacer.turn(int(_length(request) / 4 + self._tokens_out))
            body = self._wording.body(request)
            tries += 1
            try:
                answer = await self._try(turn, body)
            except CallFailed as failure:
                failure.tries, failure.raw = tries, failure.raw and self._secrets.blank(failure.raw)
                if failure.kind not in ("timeout", "connection"):
                    self.pacer.dropped(turn)
                    raise
                self.pacer.failed(turn)
                most = self.endpoint.retries
                if tries > (min(most, TIMEOUT_RETRIES) if failure.kind == "timeout" else most):
                    raise
                self._on_retry(failure.kind)
                await self.pacer.sleep(own_wait(tries))
                continue
            except BaseException:
                self.pacer.dropped(turn)
                raise
            if not isinstance(answer, Refusal):
                sent = Sent(answer[0], tries, time.monotonic() - begun, answer[1])
                status = told_status(sent.body)
                if status is not None:  # gateways send the upstream's error with a 200
                    answer = refusal(self.endpoint.shown, status, {}, sent.raw)
            if isinstance(answer, Refusal):
                if self._wording.corrected(answer, body):
                    self.pacer.dropped(turn)
                    tries -= 1
                else:
                    await self._refused(answer, turn, patience, tries)
                continue
            usage, size = sent.usage, len(sent.raw)
            self._long_refusals = 0
            self.pacer.succeeded(turn, usage.tokens_in, usage.tokens_out, size)
            self._tokens_out += 0.05 * ((usage.tokens_out or size / 4) - self._tokens_out)
            return sent

    async def models(self) -> list[str]:
        """The names of the models that the server lists. Raises ClairError where it lists none."""
        try:
            async with asyncio.timeout(30):
                response = await self._request("GET", self._models_url)
                body = orjson.loads(await response.aread())
            response.raise_for_status()
            found = [model["id"] for model in body["data"]]
        except (
            httpx.HTTPError,
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            why = self._secrets.blank(str(error)) or type(error).__name__
            raise ClairError(f"{self.endpoint.shown}/models cannot be read ({why})") from error
        return [str(name) for name in found]

    async def _refused(self, answer: Refusal, turn: Turn, patience: Patience, tries: int) -> None:
        """Waits where another try may help. Raises what ends the call, or the run, where none can."""
        failure, after = answer.failure, answer.after
        failure.tries = tries
        if answer.stop is not None:
            self.pacer.halt()  # before its place is given to another
            self.pacer.dropped(turn)
            raise answer.stopped()
        if not answer.again:
            self.pacer.dropped(turn)
            raise failure
        if after is not None and after > LONGEST_RETRY_AFTER:
            self.pacer.dropped(turn)
            self._long_refusals += 1
            if self._long_refusals < LONG_REFUSALS:
                raise failure
            raise StoppedEarly(
                f"{failure.message}\nThe server asks each call to wait {after:,.0f} s, and answers none. "
                "Run the same command again after that: it goes on from here."
            )
        if answer.rate_limited:
            wait = self.pacer.refused(turn, patience, after)
            if wait is None:
                raise failure
            self._on_retry(failure.kind)
            if wait:
                await self.pacer.sleep(wait)
            return
        self.pacer.failed(turn, after)
        if tries > self.endpoint.retries:
            raise failure
        self._on_retry(failure.kind)
        if after is None:
            await self.pacer.sleep(own_wait(tries))

    async def _try(self, turn: Turn, body: dict[str, Any]) -> tuple[str, str | None] | Refusal:
        """One try: the reply and the server's name for the call, or what was answered instead."""
        content = _encoded(body)
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                return await self._post(turn, content)
        except httpx.DecodingError as error:
            raise CallFailed(
                "invalid_reply", f"the reply cannot be unpacked: {error}", status=200
            ) from error
        except (TimeoutError, httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise self._connection_failure(error) from error

    async def _request(self, method: str, url: httpx.URL, content: bytes | None = None) -> httpx.Response:
        request = httpx.Request(
            method, url, headers=self._headers, content=content, extensions=self._extensions
        )
        response = await self._transport.handle_async_request(request)
        response.request = request
        return response

    async def _post(self, turn: Turn, content: bytes) -> tuple[str, str | None] | Refusal:
        response = await self._request("POST", self._url, content)
        try:
            status = response.status_code
            headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers.raw}
            if any("ratelimit" in name for name in headers):
                self.pacer.read(turn, headers)
            kind = headers.get("content-type", "").lower()
            if status == 200 and kind.startswith("text/event-stream"):
                text = await _read_stream(response, self._assembler(MAX_REPLY_BYTES))
            else:
                text = await _read(response)
                if status == 200 and text.lstrip().startswith(STREAM_BEGINS):  # under another type
                    assembler = self._assembler(MAX_REPLY_BYTES)
                    assembler.feed(text.encode())
                    text = assembler.body()
        except StreamError as error:
            raw = self._secrets.blank(error.raw)
            return refusal(self.endpoint.shown, status_inside(raw), headers, raw)
        except TooLong as error:
            raise CallFailed("invalid_reply", TOO_LONG, status=200) from error
        except BrokenStream as error:
            raise CallFailed("connection", f"connection to {self.endpoint.shown}: {error}") from error
        finally:
            await response.aclose()
        raw = self._secrets.blank(text)
        if status == 200:
            named = next((headers[name] for name in REQUEST_IDS if name in headers), None)
            return raw, named and self._secrets.blank(named)
        if status in REDIRECTS:
            target = urljoin(str(self._url), headers.get("location", ""))
            if status in (307, 308) and self._moved(str(response.request.url), target):
                return Refusal(CallFailed("http_4xx", "moved", status=status), moved=True)
            there = urlsplit(target)  # its path may hold what must not be shown
            raw = f"the server sends elsewhere: {there.scheme}://{there.hostname}"
        return refusal(self.endpoint.shown, status, headers, raw)

    def _moved(self, asked: str, target: str) -> bool:
        """Goes along with a server that names another path, or https, of its own host; once."""
        here, there = urlsplit(asked), urlsplit(target)
        same = (there.scheme, there.netloc) == (here.scheme, here.netloc)
        to_https = (here.scheme, there.scheme) == ("http", "https") and (
            here.hostname == there.hostname and here.port in (None, 80) and there.port in (None, 443)
        )
        again = asked == target or self._has_moved not in (None, target)
        if not (same or to_https) or again:
            return False
        self._has_moved, self._url = target, httpx.URL(target)
        return True

    def _connection_failure(self, error: BaseException) -> CallFailed:
        # The transport names every lost connection a connect time-out; its cause says what happened.
        cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
        where = self.endpoint.shown + (" through the environment's proxy" if self._transport.proxy else "")
        if isinstance(cause, aiohttp.ConnectionTimeoutError):
            return CallFailed("connection", f"no connection to {where} within {CONNECT_SECONDS:g} s")
        timed_out = (TimeoutError, aiohttp.ServerTimeoutError)
        if isinstance(cause, timed_out) or (
            isinstance(cause, httpx.TimeoutException) and error.__cause__ is None
        ):
            return CallFailed(
                "timeout",
                f"no whole reply from {where} within {self.endpoint.timeout:g} s (--timeout)",
            )
        words = self._secrets.blank(str(cause)) or type(cause).__name__
        return CallFailed("connection", f"connection to {where}: {words}")


def _length(request: Request) -> int:
    return sum(len(message["content"]) for message in request.messages)


class _Wording:
    """How requests are worded for one server. What it complained about is said otherwise from then on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._messages = endpoint.api == ANTHROPIC
        self._stream = endpoint.stream
        self._stream_options = True
        self._caps: dict[str, tuple[str, str]] = {}  # by model: the name not to use, and the one to use

    def body(self, request: Request) -> dict[str, Any]:
        if self._messages:
            body = body_of(request.model, request.messages, request.params)
            return {**body, "stream": True} if self._stream else body
        body = request.body()
        if (swap := self._caps.get(request.model)) is not None and swap[0] in body:
            body[swap[1]] = body.pop(swap[0])
        if self._stream:
            body["stream"] = True
            if self._stream_options:
                body["stream_options"] = {"include_usage": True}
        return body

    def corrected(self, answer: Refusal, sent: dict[str, Any]) -> bool:
        """Whether the request can be worded so that the complaint is met."""
        if answer.moved:
            return True
        if self._messages or answer.failure.status not in (400, 422):
            return False
        if "stream_options" in sent and dislikes_stream_options(answer.words):
            self._stream_options = False
            return True
        swap = other_cap(answer.words, sent)
        known = self._caps.get(sent["model"])
        if swap is None or (known is not None and known != swap):
            return False
        self._caps[sent["model"]] = swap
        return True


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # a number of more than 64 bits, from --extra-body
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


async def _read(response: httpx.Response) -> str:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise CallFailed("invalid_reply", TOO_LONG, status=response.status_code)
        parts.append(part)
    data = b"".join(parts)
    try:
        return data.decode("utf-8-sig")  # JSON is UTF-8, whatever a header says
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "replace")
        if response.status_code != 200:
            return text
        raise CallFailed("invalid_reply", "the reply is not UTF-8", status=200, raw=text) from error


async def _read_stream(response: httpx.Response, assembler: StreamAssembler) -> str:
    parts = response.aiter_bytes()
    async for part in parts:
        assembler.feed(part)
        if assembler.done:
            break
    # The end of the body follows at once, as a rule, and the connection can be used again.
    with contextlib.suppress(TimeoutError, httpx.HTTPError, aiohttp.ClientError):
        async with asyncio.timeout(1):
            async for _ in parts:
                pass
    return assembler.body()


def default_url(api: str = OPENAI) -> str:
    """The base URL that the environment names, or the service's own."""
    variable = _URL_VARIABLES[api]
    named = os.environ.get(variable, "").strip()
    return normal_url(named, f"the environment's {variable}", api) if named else DEFAULT_URLS[api]


def default_headers(api: str = OPENAI) -> tuple[tuple[str, str], ...]:
    """Further headers that the environment names, as OpenAI's own clients read them: organisation,
    project, and lines of `Name: value`; none for Anthropic's API. Raises UsageError for one that no header
    can hold."""
    if api != OPENAI:
        return ()
    found = [
        ("OpenAI-Organization", os.environ.get("OPENAI_ORG_ID", "").strip()),
        ("OpenAI-Project", os.environ.get("OPENAI_PROJECT_ID", "").strip()),
    ]
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            found.append((name.strip(), value.strip()))
    for name, value in found:
        if not (name + value).isascii() or not (name + value).isprintable() or not name or " " in name:
            raise UsageError(
                "OPENAI_ORG_ID, OPENAI_PROJECT_ID or OPENAI_CUSTOM_HEADERS holds what no HTTP header can"
            )
    return tuple((name, value) for name, value in found if value)


def _proxy_of(url: str) -> httpx.Proxy | None:
    """The proxy that the environment names for `url`, as httpx's own client would find it. Raises
    ClairError for one that cannot be used."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc) or proxy_bypass(parts.hostname or ""):
        return None
    if proxy.startswith("socks"):
        raise ClairError(
            "the environment names a SOCKS proxy, which cannot be used; name an HTTP proxy in HTTPS_PROXY, "
            "or the server in NO_PROXY"
        )
    try:
        return httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (ValueError, httpx.InvalidURL) as error:
        raise ClairError("the environment names a proxy that is no URL") from error
