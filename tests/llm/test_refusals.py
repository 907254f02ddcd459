"""What refusals mean, and secrets that are in none of them."""

from __future__ import annotations

import json

import pytest

from clair_apo.llm.secrets import Secrets
from clair_apo.llm.wire import dislikes_stream_options, other_cap, refusal, status_inside


def said(message: str, code: object = None, kind: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "code": code}})


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "again"),
    [
        (429, said("slow down"), {}, "rate_limited", True),
        (429, said("slow down"), {"x-should-retry": "false"}, "rate_limited", False),
        (429, said("Request too large for gpt-4o on tokens per min (TPM)"), {}, "context_length", False),
        (500, "<html>oops</html>", {}, "http_5xx", True),
        (503, "", {}, "http_5xx", True),
        (529, said("overloaded"), {}, "http_5xx", True),
        (408, "", {}, "timeout", True),
        (409, "", {}, "http_4xx", True),
        (400, said("bad"), {}, "http_4xx", False),
        (400, said("lock"), {"x-should-retry": "true"}, "http_4xx", True),
        (404, said("no such model"), {}, "http_4xx", False),
        (400, said("x", "context_length_exceeded"), {}, "context_length", False),
        (400, said("This model's maximum context length is 8192 tokens"), {}, "context_length", False),
        (413, "prompt is too long: 300000 tokens", {}, "context_length", False),
        (400, said("x", "content_filter"), {}, "content_filter", False),
        (302, "", {}, "invalid_reply", False),
    ],
)
def test_kinds(status: int, body: str, headers: dict[str, str], kind: str, again: bool) -> None:
    answer = refusal("http://x", status, headers, body)
    assert (answer.failure.kind, answer.again, answer.stop) == (kind, again, None)
    assert answer.failure.status == status
    assert str(answer.failure).startswith(f"http://x answered {status}")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (429, said("You exceeded your current quota", "insufficient_quota"), "quota"),
        (429, said("quota", None, "insufficient_quota"), "quota"),
        (429, said("quota", 1113, "insufficient_quota"), "quota"),
        (402, said("Insufficient Balance", "insufficient_balance"), "quota"),
        (401, said("Incorrect API key"), "key"),
    ],
)
def test_what_stops_the_run(status: int, body: str, words: str) -> None:
    answer = refusal("http://x", status, {"retry-after": "1"}, body)
    assert answer.stop is not None
    assert words in answer.stop
    assert not answer.again
    assert answer.stopped().exit_code == 3


def test_a_wait_is_read_only_where_there_is_another_try() -> None:
    assert refusal("http://x", 429, {"retry-after": "2"}, "").after == 2.0
    assert refusal("http://x", 503, {"retry-after-ms": "1500"}, "").after == 1.5
    assert refusal("http://x", 404, {"retry-after": "2"}, "").after is None


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ('{"error": {"code": 429, "message": "upstream"}}', 429),
        ('{"error": {"code": "server_error", "message": "it broke"}}', 500),
        ('{"error": {"code": "context_length_exceeded", "message": "x"}}', 400),
        ('{"error": "This model\'s maximum context length is 8192 tokens"}', 400),
        ('{"error": {"code": 7}}', 500),
        ("[]", 500),
    ],
)
def test_errors_inside_a_stream(raw: str, status: int) -> None:
    assert status_inside(raw) == status


@pytest.mark.parametrize(
    ("words", "sent", "swap"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "max_tokens",
            ("max_tokens", "max_completion_tokens"),
        ),
        (
            "body.max_completion_tokens: Extra inputs are not permitted",
            "max_completion_tokens",
            ("max_completion_tokens", "max_tokens"),
        ),
        ("Unrecognized request argument supplied: max_completion_tokens", "max_completion_tokens", "other"),
        ("max_tokens is too large: 99999. This model supports at most 16384", "max_tokens", None),
        ("max_tokens must be positive", "max_tokens", None),
        ("Unsupported parameter: 'temperature'", "max_tokens", None),
        ("Unsupported parameter: 'max_tokens'", "temperature", None),
    ],
)
def test_the_cap_has_two_names(words: str, sent: str, swap: object) -> None:
    expected = ("max_completion_tokens", "max_tokens") if swap == "other" else swap
    assert other_cap(words, {"model": "m", sent: 5}) == expected


def test_stream_options() -> None:
    assert dislikes_stream_options("Unrecognized request argument supplied: stream_options")
    assert not dislikes_stream_options("bad temperature")


def test_secret_headers_are_blanked_and_others_are_not() -> None:
    secrets = Secrets(
        "https://me:pass-word-123@x/v1?api-key=abcdefgh12345678&version=2024-02-01",
        "sk-1",
        {
            "X-Api-Key": "hush-hush-1",
            "Authorization": "Bearer t0ken-abcdefgh",
            "Cookie": "session=c00kie-secret; lang=en",
            "X-Team": "blue-team-2024",
        },
    )
    for secret in (
        "c00kie-secret",
        "sk-1",
        "pass-word-123",
        "abcdefgh12345678",
        "hush-hush-1",
        "t0ken-abcdefgh",
    ):
        assert secrets.blank(f"it is {secret}.") == "it is [key]."
    for word in ("2024-02-01", "blue-team-2024"):
        assert secrets.blank(word) == word
    assert secrets.blank('{"a": "s\\u006b-1"}') == '{"a": "[key]"}'
