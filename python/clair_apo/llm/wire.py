"""What a server's refusal means: which kind of failure it is, and whether another try can help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clair_apo.errors import StoppedEarly
from clair_apo.llm.chat import NOT_JSON, CallFailed, error_text, read
from clair_apo.llm.messages import status_of
from clair_apo.llm.rates import retry_after

CAPS = ("max_tokens", "max_completion_tokens")

NO_QUOTA = "The account has no quota left. Add credit and run the same command again: it goes on from here."
WRONG_KEY = (
    "The key was not accepted. Keys come from OPENAI_API_KEY (ANTHROPIC_API_KEY with --api anthropic) or "
    "the variable that --reviser-key-env or --model-key-env names; set it and run the same command again."
)

_LENGTH_CODES = ("context_length_exceeded", "string_above_max_length")
_LENGTH_WORDS = (
    "maximum context length",
    "context length",
    "context_length",
    "context window",
    "too many tokens",
    "prompt is too long",
    "input is too long",
    "longer than the maximum",
)
_NOT_TAKEN = ("unsupported", "not supported", "unrecognized", "unknown", "not permitted", "extra")
_QUOTA_CODES = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "insufficient_balance",
    "enforced_spend_limit_reached",
)
# What Anthropic says with a 400 where no call could do better.
_QUOTA_WORDS = ("credit balance is too low", "reached your specified")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no reply. `after`: the seconds that the server asks to wait. `again`: whether
    another try may help. `stop`: why no row could do better, where that is so. `words`: the server's."""

    failure: CallFailed
    after: float | None = None
    again: bool = False
    stop: str | None = None
    words: str = ""
    moved: bool = False  # to another path of the same server

    @property
    def rate_limited(self) -> bool:
        return self.failure.kind == "rate_limited"

    def stopped(self) -> StoppedEarly:
        return StoppedEarly(f"{self.failure.message}\n{self.stop}")


def refusal(where: str, status: int, headers: Mapping[str, str], raw: str) -> Refusal:
    """Reads an answer whose status is not 200. `where` names the server for people."""
    body = read(raw)
    if body is NOT_JSON:
        body = raw
    words = error_text(body) if raw.strip() else "no further words"
    message = f"{where} answered {status}: {words}"
    code = _code(body)

    def failed(kind: str, *, again: bool = False, stop: str | None = None) -> Refusal:
        failure = CallFailed(kind, message, status=status, raw=raw)
        return Refusal(failure, retry_after(headers) if again else None, again, stop, words)

    no_quota = status in (429, 403) and code in _QUOTA_CODES
    if status == 402 or no_quota or (status == 400 and any(w in words.lower() for w in _QUOTA_WORDS)):
        return failed("rate_limited", stop=NO_QUOTA)
    if status == 401:
        return failed("http_4xx", stop=WRONG_KEY)
    # `x-should-retry` is what OpenAI's own clients obey before anything else.
    told = headers.get("x-should-retry")
    if status == 429 and "request too large" in words.lower():
        return failed("context_length")  # for the limit of a minute: no later minute has room for it
    if status == 429:
        return failed("rate_limited", again=told != "false")
    if status >= 500:
        return failed("http_5xx", again=told != "false")
    if status in (408, 409):
        return failed("timeout" if status == 408 else "http_4xx", again=told != "false")
    if (
        code == "request_too_large"
        or code in _LENGTH_CODES
        or (status in (400, 413, 422) and _speaks_of_length(words))
    ):
        return failed("context_length")
    if code in ("content_filter", "content_policy_violation"):
        return failed("content_filter")
    return failed("http_4xx" if 400 <= status < 500 else "invalid_reply", again=told == "true")


def status_inside(raw: str) -> int:
    """The status that an error inside a stream stands for, which began with 200: its own code where that is
    one, as gateways send them."""
    body = read(raw)
    told = told_status(body)
    if told is not None:
        return told
    code = _code(body)
    if (known := status_of(code)) is not None:
        return known
    return 400 if code in _LENGTH_CODES or _speaks_of_length(error_text(body)) else 500


def told_status(body: object) -> int | None:
    """The status that a body names which holds an error and no choice; None for any other."""
    if not isinstance(body, dict) or "choices" in body:
        return None
    error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


def other_cap(words: str, sent: Mapping[str, object]) -> tuple[str, str] | None:
    """The names of the cap on output tokens that was sent and of the one to send instead, where a
    server's complaint is about that; None otherwise."""
    said = words.lower()
    if _speaks_of_length(words):
        return None  # the number is too large, whatever it is called
    for name, other in (CAPS, CAPS[::-1]):
        if name not in sent or other in sent or name not in said:
            continue
        if (other in said and "instead" in said) or any(word in said for word in _NOT_TAKEN):
            return name, other
    return None


def dislikes_stream_options(words: str) -> bool:
    """Whether a complaint is about `stream_options`, which older servers do not know."""
    return "stream_options" in words.lower() or "include_usage" in words.lower()


def _code(body: object) -> str:
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ""
    details = error.get("details")
    named = [error.get(name) for name in ("code", "type")]
    named += [details.get("error_code")] if isinstance(details, dict) else []
    known = [name for name in named if isinstance(name, str) and name]
    # Some send a number as the code and the word as the type, or the word as either.
    return next((name for name in known if name in _QUOTA_CODES + _LENGTH_CODES), known[0] if known else "")


def _speaks_of_length(words: str) -> bool:
    words = words.lower()
    return any(phrase in words for phrase in _LENGTH_WORDS)
