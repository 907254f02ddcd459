"""`--api anthropic`: a run against a server that behaves as the Messages API is documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import build, clair, failures, rows, write_prompts
from loopback import Answer, Loopback, error, marked, upper
from messages_api import VERSION, checked, events, failure, message, revises, whole

KEY = "sk-ant-9f8e7d6c5b4a"


def source_of(folder: Path, count: int) -> Path:
    return write_prompts(
        folder / "in.parquet",
        prompt=[f"Question {number}?" for number in range(count)],
        response=[f"an answer with words {number}." for number in range(count)],
    )


def test_a_run(tmp_path: Path) -> None:
    source = source_of(tmp_path, 3)
    told = {"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 10}

    def behave(body: dict[str, Any], n: int) -> Answer:
        return message(upper(body, n).content, usage=told)

    with Loopback(checked(behave)) as server:
        output = tmp_path / "p.parquet"
        flags = ["--reviser", "claude-x", "--api", "anthropic", "--temperature", 0.7]
        prices = tmp_path / "prices.json"
        prices.write_text(json.dumps({"claude-x": {"input": 3, "output": 15, "cached_input": 0.3}}))
        env = {"ANTHROPIC_BASE_URL": server.url.removesuffix("/v1"), "ANTHROPIC_API_KEY": KEY}
        env["OPENAI_CUSTOM_HEADERS"] = "x-other: 1"
        summary = build(source, output, *flags, "--prices", prices, env=env)
        assert (summary["kept"], summary["tokens_in"], summary["tokens_out"]) == (3, 3000, 30)
        assert summary["cost_usd"] == pytest.approx(3 * (100 * 3 + 900 * 0.3 + 10 * 15) / 1e6)
        assert rows(output)[0]["chosen"][0]["content"] == "AN ANSWER WITH WORDS 0."
        for asked in server.asked:
            assert asked.path == "/v1/messages"
            headers = {name.lower(): value for name, value in asked.headers.items()}
            assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, VERSION)
            assert "authorization" not in headers
            assert "x-other" not in headers
            assert (asked.body["max_tokens"], asked.body["temperature"]) == (4096, 0.7)
        again = build(source, output, *flags, env=env)
        assert (again["calls_from_ledger"], len(server.asked)) == (3, 3)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_each_role_has_an_api_of_its_own(tmp_path: Path) -> None:
    source = write_prompts(
        tmp_path / "in.parquet",
        prompt=[[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Well?"}]],
    )

    def sampled(body: dict[str, Any], n: int) -> Answer:
        assert body["system"] == "Be kind."
        assert len(body["messages"]) == 1
        return message("the model's own answer.")

    with Loopback(checked(sampled)) as theirs, Loopback(upper) as ours:
        flags = ["--model", "claude-x", "--model-url", theirs.url, "--model-api", "anthropic"]
        flags += ["--reviser", "m", "--reviser-url", ours.url]
        summary = build(source, tmp_path / "p.parquet", *flags)
        assert summary["kept"] == 1
        assert [item.path for item in theirs.asked + ours.asked] == ["/v1/messages", "/v1/chat/completions"]


def test_streams(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], n: int) -> Answer:
        if not body.get("stream"):
            return failure(400, "invalid_request_error", "stream it")
        data = events(whole(upper(body, n).content))
        if n == 0:  # the first try ends in an error inside the stream
            data = data[: data.index("event: content_block_stop")]
            data += 'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
        return Answer(body=data, headers={"Content-Type": "text/event-stream"})

    with Loopback(checked(behave)) as server:
        flags = ["--reviser", "claude-x", "--reviser-url", server.url, "--api", "anthropic", "--stream"]
        summary = build(source_of(tmp_path, 2), tmp_path / "p.parquet", *flags)
        assert (summary["kept"], summary["retries"], summary["tokens_out"]) == (2, 2, 10)


def test_what_servers_refuse(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        if "Question 0" in said:
            return failure(529, "overloaded_error", "Overloaded") if n == 0 else revises(body, n)
        if "Question 1" in said:
            return (
                failure(429, "rate_limit_error", "slow", retry_after="0.1") if n == 0 else revises(body, n)
            )
        if "Question 2" in said:
            return message(None, "refusal")
        if "Question 3" in said:  # cut off at first, whole with twice the room
            whole_one = body["max_tokens"] == 20
            return revises(body, n) if whole_one else message(marked("AN A"), "max_tokens")
        return failure(400, "invalid_request_error", f"no such thing for {KEY}")

    source = source_of(tmp_path, 5)
    with Loopback(checked(behave)) as server:
        output = tmp_path / "p.parquet"
        flags = ["--reviser", "c", "--reviser-url", server.url, "--reviser-api", "anthropic"]
        summary = build(
            source, output, *flags, "--max-tokens", 10, "--retries", 2, env={"ANTHROPIC_API_KEY": KEY}
        )
        assert (summary["kept"], summary["retries"]) == (3, 2)
        found = {row["row"]: (row["kind"], row["message"]) for row in failures(output)}
        assert {row: kind for row, (kind, _) in found.items()} == {2: "refusal", 4: "http_4xx"}
        assert "[key]" in found[4][1]
        assert KEY not in found[4][1]


def test_no_key_and_a_wrong_key(tmp_path: Path) -> None:
    source = source_of(tmp_path, 1)
    flags = ["--input", source, "--output", tmp_path / "p.parquet", "--reviser", "c", "--api", "anthropic"]
    done = clair("build-pairs", *flags, env={"OPENAI_API_KEY": "sk-other"})
    assert done.returncode == 1
    assert "ANTHROPIC_API_KEY" in done.stderr
    with Loopback(lambda body, n: failure(401, "authentication_error", "invalid x-api-key")) as server:
        done = clair(
            "build-pairs", *flags, env={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url}
        )
    assert done.returncode == 3
    assert "ANTHROPIC_API_KEY" in done.stderr
    done = clair("build-pairs", *flags, "--judge-api", "other")
    assert done.returncode == 2
    assert "anthropic" in done.stderr


def test_a_server_of_the_other_kind(tmp_path: Path) -> None:
    with Loopback(lambda body, n: error(404, "no such route")) as server:
        flags = ["--reviser", "c", "--reviser-url", server.url, "--api", "anthropic"]
        summary = build(source_of(tmp_path, 1), tmp_path / "p.parquet", *flags)
    assert summary["failures"] == {"http_4xx": 1}
