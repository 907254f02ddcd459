"""Budgets over time, and what headers say of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest

from clair_apo.llm.rates import Rate, ServerBudget, Told, retry_after, seconds_of, told_by


def test_a_rate_is_spread_evenly() -> None:
    rate = Rate(120)
    now, taken = 0.0, []
    while len(taken) < 10:
        now += rate.wait(now)
        rate.take(1, now)
        taken.append(now)
    assert taken == pytest.approx([n * 0.5 for n in range(10)])
    rate.correct(4)  # they turned out to be dearer
    assert rate.wait(now) == pytest.approx(2.5)
    rate.correct(-4)
    assert rate.wait(now) == pytest.approx(0.5)
    assert rate.wait(now + 100) == 0.0


def test_time_that_passed_unused_is_no_credit() -> None:
    rate = Rate(60)
    rate.take(1, 0.0)
    rate.take(1, 100.0)
    assert rate.wait(100.0) > 0.9


def test_a_servers_budget_refills_evenly_between_its_words() -> None:
    budget = ServerBudget()
    assert budget.wait(1, 0.0) == 0.0
    # 60 of 60 used, full again in a minute: the next one is there in a second, not in sixty.
    budget.told(Told(60, 0, 60.0), 60, 60, 0.0)
    assert budget.wait(1, 0.0) == pytest.approx(1.0)
    assert budget.wait(1, 1.0) == 0.0
    budget.take(1, 1.0)
    assert budget.wait(1, 1.0) == pytest.approx(1.0)
    budget.told(Told(60, 50, 10.0), 70, 110, 5.0)  # forty more were sent meanwhile
    assert budget.wait(1, 5.0) == 0.0
    budget.take(10, 5.0)
    assert budget.wait(1, 5.0) == pytest.approx(1.0)
    budget.told(Told(60, 0, 60.0), 65, 120, 6.0)  # an older call that comes back late says nothing
    assert budget.wait(1, 6.0) == 0.0
    budget.told(Told(60, 60, 0.0), 130, 130, 7.0)
    assert budget.wait(1, 7.0) == 0.0


def test_a_budget_that_was_told_once_is_full_again_in_time() -> None:
    budget = ServerBudget()
    budget.told(Told(10, 0, 1.0), 1, 1, 0.0)
    now = 0.0
    for _ in range(50):
        now += budget.wait(1, now)
        budget.take(1, now)
    assert now == pytest.approx(5.0)
    assert budget.wait(10, now + 10) == 0.0


def test_a_call_larger_than_the_budget_goes_when_it_is_full() -> None:
    budget = ServerBudget()
    budget.told(Told(10, 0, 86400.0), 10, 10, 0.0)
    assert budget.wait(1, 0.0) == pytest.approx(8640.0)
    assert budget.wait(1000, 1e9) == 0.0


@pytest.mark.parametrize(
    ("headers", "unit", "told"),
    [
        (
            {
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-remaining-requests": "499",
                "x-ratelimit-reset-requests": "120ms",
            },
            "requests",
            Told(500, 499, 0.12),
        ),
        (
            {
                "x-ratelimit-limit-tokens": "30000",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0.5s",
            },
            "tokens",
            Told(30000, 0, 360.5),
        ),
        (
            {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "99", "x-ratelimit-reset": "1"},
            "requests",
            Told(10, 10, 1.0),
        ),
        (
            {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9", "x-ratelimit-reset": "1"},
            "tokens",
            None,
        ),
        ({"x-ratelimit-remaining-requests": "9"}, "requests", None),
        (
            {
                "x-ratelimit-limit-requests": "nan",
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-requests": "1s",
            },
            "requests",
            None,
        ),
        ({}, "requests", None),
    ],
)
def test_headers_tell_budgets(headers: dict[str, str], unit: str, told: Told | None) -> None:
    assert told_by(headers, unit) == told


def test_anthropics_headers_hold_dates() -> None:
    full = datetime.fromtimestamp(time.time() + 30, UTC).isoformat()
    told = told_by(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "3",
            "anthropic-ratelimit-requests-reset": full,
        },
        "requests",
    )
    assert told is not None
    assert told.reset == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("0.25", 0.25),
        ("1 week", None),
        ("", None),
        (None, None),
        ("-3", None),
    ],
)
def test_spans(text: str | None, seconds: float | None) -> None:
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


def test_spans_that_are_times() -> None:
    assert seconds_of(str(time.time() + 20)) == pytest.approx(20, abs=1)
    assert seconds_of(str(int(1000 * (time.time() + 20)))) == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) == pytest.approx(
        10, abs=1.5
    )
    assert retry_after({"retry-after": formatdate(time.time() - 10, usegmt=True)}) == 0.0
