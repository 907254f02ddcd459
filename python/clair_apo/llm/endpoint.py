"""A client for any OpenAI-compatible chat-completions endpoint.

httpx over aiohttp's connections: the same API as plain httpx, without its pool's stall beyond a hundred
connections. `HttpxAiohttpClient` sets proxies up from the environment as httpx does; a transport that
is passed in by hand would switch that off.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
import httpx
from httpx_aiohttp import HttpxAiohttpClient

from clair_apo.errors import ClairError, StoppedEarly, UsageError
from clair_apo.llm.chat import CallFailed, Request, Sent, error_text

DEFAULT_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 15.0
# Shorter than the five seconds after which uvicorn closes an idle connection: a request that is sent
# into a closing one is lost.
KEEPALIVE_SECONDS = 4.0
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
# A server that asks for more patience than this gets the row recorded as rate limited instead.
LONGEST_RETRY_AFTER = 120.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to call, and how. `url` is without `/chat/completions`; `key` may be None."""

    url: str
    key: str | None = None
    timeout: float = 600.0
    retries: int = 6
    concurrency: int = 64

    @property
    def shown(self) -> str:
        """The URL as it may be shown and stored: without user, password and query values."""
        return shown_url(self.url)


def normal_url(url: str) -> str:
    """`url` without a trailing slash or `/chat/completions`. Raises UsageError for no http URL."""
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:  # it is not shown: it may be a key that took the wrong flag
        raise UsageError("what is given as a URL is not a URL such as http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def shown_url(url: str) -> str:
    """`url` with what may be a secret left out."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))


class EndpointClient:
    """Sends requests, retrying what may pass. One instance serves a whole run; close it at the end.

    `on_retry` is called with the kind of each failed try, for the live view.
    """

    def __init__(self, endpoint: Endpoint, on_retry: Callable[[str], None] | None = None) -> None:
        self.endpoint = endpoint
        self._on_retry = on_retry or (lambda kind: None)
        parts = urlsplit(endpoint.url)
        query = f"?{parts.query}" if parts.query else ""
        host = parts.netloc.rpartition("@")[2]  # aiohttp takes no credentials beside a header of ours
        base = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._chat_url = f"{base}/chat/completions{query}"
        self._models_url = f"{base}/models{query}"
        self._secrets = _secrets(endpoint)
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "clair-apo",
        }
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        elif parts.username:
            headers["Authorization"] = f"Basic {_basic(endpoint.url)}"
        connections = max(endpoint.concurrency, 1)
        self._client = HttpxAiohttpClient(
            headers=headers,
            # The whole call has one deadline of its own; reading may be silent for all of it.
            timeout=httpx.Timeout(
                endpoint.timeout, connect=min(CONNECT_SECONDS, endpoint.timeout), pool=None
            ),
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=KEEPALIVE_SECONDS,
            ),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, request: Request, repeat: int = 0) -> Sent:
        """The body of a 200 reply. Raises CallFailed once the tries are used up or where another try
        cannot help, StoppedEarly where no row could do better (wrong key, no quota)."""
        body = json.dumps(request.body(), ensure_ascii=False, separators=(",", ":")).encode()
        begun = time.monotonic()
        tries = 0
        while True:
            tries += 1
            try:
                raw = await self._once(body)
                return Sent(raw, tries, time.monotonic() - begun)
            except _Retry as retry:
                failure, wait = retry.failure, retry.after
            failure.tries = tries
            if tries > self.endpoint.retries or (wait or 0.0) > LONGEST_RETRY_AFTER:
                raise failure
            self._on_retry(failure.kind)
            if wait is None:  # full jitter over the upper half: neither together nor at once
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
            await asyncio.sleep(wait)

    async def models(self) -> list[str]:
        """The names of the models that the server lists. Raises ClairError where it lists none."""
        try:
            async with asyncio.timeout(30):
                response = await self._client.get(self._models_url)
            response.raise_for_status()
            found = [model["id"] for model in response.json()["data"]]
        except (
            httpx.HTTPError,
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            why = self._blank(str(error)) or type(error).__name__
            raise ClairError(f"{self.endpoint.shown}/models cannot be read ({why})") from error
        return [str(name) for name in found]

    async def _once(self, body: bytes) -> str:
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                response = await self._client.post(self._chat_url, content=body)
        except (TimeoutError, httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _Retry(self._connection_failure(error)) from error
        try:
            # JSON is UTF-8, whatever a header says.
            text = response.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = response.content.decode("utf-8", "replace")
            if response.status_code == 200:
                raise CallFailed(
                    "invalid_reply", "the reply is not UTF-8", status=200, raw=self._blank(text)
                ) from error
        if response.status_code == 200:
            return self._blank(text)
        raw = self._blank(text)
        if response.status_code in (301, 302, 303, 307, 308):
            raw = f"the server sends elsewhere: {shown_url(response.headers.get('location', '?'))}"
        self._refuse(response.status_code, response.headers, raw)
        raise AssertionError  # _refuse always raises

    def _connection_failure(self, error: BaseException) -> CallFailed:
        # The transport names every lost connection a connect time-out; its cause says what happened.
        cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
        where = self.endpoint.shown
        timed_out = (TimeoutError, aiohttp.ServerTimeoutError)
        if isinstance(cause, timed_out) or (
            isinstance(cause, httpx.TimeoutException) and error.__cause__ is None
        ):
            return CallFailed(
                "timeout",
                f"no whole reply from {where} within {self.endpoint.timeout:g} s (--timeout)",
            )
        words = self._blank(str(cause)) or type(cause).__name__
        return CallFailed("connection", f"connection to {where}: {words}")

    def _refuse(self, status: int, headers: Mapping[str, str], raw: str) -> None:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = raw
        words = error_text(body) if raw.strip() else "no further words"
        message = f"{self.endpoint.shown} answered {status}: {words}"
        code = _error_code(body)
        if code == "insufficient_quota":
            raise StoppedEarly(
                f"{message}\nThe account has no quota left. Add credit, then run the "
                "same command again: it goes on from here."
            )
        if status == 401:
            raise StoppedEarly(
                f"{message}\nThe key was not accepted. Keys come from OPENAI_API_KEY or "
                "the variable that --reviser-key-env or --model-key-env names; set it "
                "and run the same command again."
            )
        if status == 429:
            raise _Retry(CallFailed("rate_limited", message, status=status, raw=raw), _retry_after(headers))
        if status >= 500:
            raise _Retry(CallFailed("http_5xx", message, status=status, raw=raw), _retry_after(headers))
        if status in (408, 409):
            kind = "timeout" if status == 408 else "http_4xx"
            raise _Retry(CallFailed(kind, message, status=status, raw=raw), _retry_after(headers))
        kind = "http_4xx" if 400 <= status < 500 else "invalid_reply"
        if code in ("context_length_exceeded", "string_above_max_length") or (
            status in (400, 413, 422) and _speaks_of_length(words)
        ):
            kind = "context_length"
        elif code in ("content_filter", "content_policy_violation"):
            kind = "content_filter"
        raise CallFailed(kind, message, status=status, raw=raw)

    def _blank(self, text: str) -> str:
        """`text` with the secrets in it blanked, also where JSON spells them in another way."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "[key]")
        if self._secrets and ("\\u00" in text or "\\/" in text):
            try:
                body = json.loads(text)
            except (ValueError, RecursionError):
                return text
            if any(secret in json.dumps(body, ensure_ascii=False) for secret in self._secrets):
                return json.dumps(_blanked(body, self._secrets), ensure_ascii=False)
        return text


def _blanked(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {_blanked(k, secrets): _blanked(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [_blanked(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "[key]")
    return value


class _Retry(Exception):
    def __init__(self, failure: CallFailed, after: float | None = None) -> None:
        self.failure = failure
        self.after = after


def _secrets(endpoint: Endpoint) -> list[str]:
    """The key and the URL's own credentials, in the forms in which a server could echo them.

    A word such as `ollama` or `EMPTY`, given where a server wants any key, is none: blanking it would
    change answers that use the word.
    """
    parts = urlsplit(endpoint.url)
    found = [endpoint.key, parts.password, _basic(endpoint.url) if parts.username else None]
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if re.search(r"key|token|secret|sig|pass|auth|code", name, re.I):
            found.append(value)
    plain = {form for word in found if word for form in (word, unquote(word)) if _is_secret(form)}
    return sorted(plain, key=len, reverse=True)


def _is_secret(word: str) -> bool:
    mixed = any(c.isdigit() for c in word) and any(c.isalpha() for c in word)
    return word.startswith("sk-") or len(word) >= 16 or (len(word) >= 8 and mixed)


def _basic(url: str) -> str:
    parts = urlsplit(url)
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(pair.encode()).decode()


def _error_code(body: object) -> str:
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ""
    for name in ("code", "type"):
        if isinstance(error.get(name), str) and error[name]:
            return str(error[name])
    return ""


def _speaks_of_length(words: str) -> bool:
    words = words.lower()
    return any(
        phrase in words
        for phrase in (
            "maximum context length",
            "context length",
            "context_length",
            "context window",
            "too many tokens",
            "prompt is too long",
            "input is too long",
            "longer than the maximum",
        )
    )


def _retry_after(headers: Mapping[str, Any]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, `retry-after` in seconds, or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            try:
                when = email.utils.parsedate_to_datetime(value)
            except ValueError:
                continue
            return max(0.0, when.timestamp() - time.time())
    return None


def default_url() -> str:
    """The base URL that the environment names, or OpenAI's."""
    return os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
