"""Budgets of requests and tokens over time: the user's own, and those that a server's headers tell.

Plain arithmetic over times that are passed in; `pacing` does the waiting.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

# A timer that fires late may be made up for, by this much.
SLACK_SECONDS = 0.05


class Rate:
    """So many units a minute, spread evenly: what a minute allows is never spent at once, since servers
    count shorter spans as well."""

    def __init__(self, per_minute: float) -> None:
        self._seconds = 60.0 / per_minute  # for one unit
        self._next: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until something may be taken."""
        return 0.0 if self._next is None else max(0.0, self._next - now)

    def take(self, units: float, now: float) -> None:
        """Takes units; what comes after waits for them."""
        begin = now if self._next is None else max(self._next, now - SLACK_SECONDS)
        self._next = begin + units * self._seconds

    def correct(self, units: float) -> None:
        """Adds units that turned out to be needed, or gives back where negative."""
        if self._next is not None:
            self._next += units * self._seconds


@dataclass(frozen=True, slots=True)
class Told:
    """What headers say of one budget. `reset` is the time in seconds until it is full again, which is
    not the wait for the next call (OpenAI's guide on rate limits)."""

    limit: float
    remaining: float
    reset: float


class ServerBudget:
    """A server's own budget, refilled evenly, as its last word and the calls since tell it."""

    def __init__(self) -> None:
        self._level = 0.0
        self._at: float | None = None  # None: nothing was told
        self._rate = 0.0
        self._limit = 0.0
        self._told_for = -1.0

    def told(self, what: Told, spent_then: float, spent: float, now: float) -> None:
        """`what` came with the reply to the call after which `spent_then` units had been sent in all; now
        it is `spent`."""
        if spent_then < self._told_for:
            return  # an older call, overtaken
        self._told_for = spent_then
        used = what.limit - what.remaining
        if used <= 0 or what.reset <= 0:
            self._at = None
            return
        self._rate, self._limit = used / what.reset, what.limit
        self._level, self._at = what.remaining - (spent - spent_then), now

    def wait(self, units: float, now: float) -> float:
        """Seconds until `units` are there."""
        if self._at is None:
            return 0.0
        lacking = min(units, self._limit) - self._refilled(now)
        return lacking / self._rate if lacking > 0 else 0.0

    def take(self, units: float, now: float) -> None:
        """A call goes out that takes so much."""
        if self._at is not None:
            self._level, self._at = self._refilled(now) - units, now

    def _refilled(self, now: float) -> float:
        assert self._at is not None
        return min(self._limit, self._level + self._rate * (now - self._at))


_OPENAI = "x-ratelimit-{what}-{unit}"
_ANTHROPIC = "anthropic-ratelimit-{unit}-{what}"
_PLAIN = ("x-ratelimit-{what}", "ratelimit-{what}")


def told_by(headers: Mapping[str, str], unit: str) -> Told | None:
    """The budget of `unit` (`requests` or `tokens`) that headers tell, in the spellings of OpenAI and
    those who follow it, Anthropic, and without a unit (taken for requests); None where they do not."""
    forms = [_OPENAI, _ANTHROPIC, *(_PLAIN if unit == "requests" else ())]
    for form in forms:
        values = [headers.get(form.format(what=w, unit=unit)) for w in ("limit", "remaining", "reset")]
        if values[1] is None:
            continue
        limit, remaining = _number(values[0]), _number(values[1])
        reset = seconds_of(values[2])
        if limit is not None and remaining is not None and reset is not None and limit > 0:
            return Told(limit, min(remaining, limit), reset)
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|[dhms])")
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def seconds_of(text: str | None) -> float | None:
    """A span as headers write it: `1s`, `6m0s`, `12ms`, `0.5`, a time since the epoch, or a date."""
    if text is None:
        return None
    text = text.strip()
    number = _number(text)
    if number is not None:
        if number > 1e11:  # a time in milliseconds
            number /= 1000
        return max(0.0, number - time.time()) if number > 1e9 else number
    parts = _PARTS.findall(text)
    if parts and "".join(value + unit for value, unit in parts) == text:
        return sum(float(value) * _SECONDS[unit] for value, unit in parts)
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, `retry-after` in seconds, or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        number = _number(value.strip())
        if number is not None:
            return number * unit
        try:
            when = email.utils.parsedate_to_datetime(value).timestamp()
        except (ValueError, OverflowError, TypeError):
            continue
        return max(0.0, when - time.time())
    return None
