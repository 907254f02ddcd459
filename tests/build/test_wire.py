"""What goes over the wire between build-pairs and a server, and what a run makes of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from clair_apo.llm import tokens
from clair_apo.llm.chat import Request, Sent
from clair_apo.llm.endpoint import Endpoint, EndpointClient
from cli import asks, build, clair, dropped, failures, rows, write_prompts
from faults import asked_about, reply
from loopback import Answer, Asked, Loopback, error, marked, upper

PRICE = (10.0, 30.0)  # USD per million tokens, in and out
SECRET = "hdr-5f2b9d1ce8a7-77"


def source_of(folder: Path, count: int, words: int = 6) -> Path:
    answer = " ".join(["word"] * words)
    return write_prompts(
        folder / "in.parquet",
        prompt=[f"Question {number}?" for number in range(count)],
        response=[f"{answer} {number}." for number in range(count)],
    )


def paid(asked: list[Asked]) -> list[str]:
    """The rows whose replies were sent, once for each."""
    return sorted(asked_about(item.body)[0] for item in asked if item.answer.status == 200)


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")],
)
def test_the_cap_is_named_as_the_server_wants_it(tmp_path: Path, sent: str, wanted: str) -> None:
    def behave(body: dict[str, Any], n: int) -> Answer:
        if sent in body:
            return error(400, f"Unsupported parameter: {sent!r}. Use {wanted!r} instead.")
        return upper(body, n)

    source = source_of(tmp_path, 20)
    with Loopback(behave) as server:
        flags = asks(server, "--extra-body", json.dumps({sent: 77}), "--concurrency", 1)
        summary = build(source, tmp_path / "p.parquet", *flags)
        assert (summary["kept"], summary["retries"]) == (20, 0)
        assert [sent in item.body for item in server.asked] == [True] + [False] * 20
        assert all(item.body[wanted] == 77 for item in server.asked[1:])
        begun = len(server.asked)
        summary = build(source, tmp_path / "q.parquet", *flags, "--concurrency", 8)
        assert summary["kept"] == 20
        assert len(server.asked) - begun <= 20 + 8, "more complaints than calls were in flight"


@pytest.mark.parametrize("form", ["ms", "seconds", "date", "503"])
def test_retry_after_holds_the_whole_run(tmp_path: Path, form: str) -> None:
    """Four calls in flight, one is told to wait: nobody calls before that time, the others neither."""
    until = 0.0

    def behave(body: dict[str, Any], n: int) -> Answer:
        nonlocal until
        if len(server.asked) != 9:
            return Answer(upper(body, n).content, delay=0.02)
        if form == "date":
            date = int(time.time()) + 2
            until = time.monotonic() + date - time.time()
            return error(429, "slow down", retry_after=formatdate(date, usegmt=True))
        until = time.monotonic() + 1.3
        headers = {"retry_after_ms": "1300"} if form == "ms" else {"retry_after": "1.3"}
        return error(503 if form == "503" else 429, "slow down", **headers)

    with Loopback(behave) as server:
        summary = build(source_of(tmp_path, 30), tmp_path / "p.parquet", *asks(server, "--concurrency", 4))
        told = server.asked[9]
        assert (summary["kept"], summary["retries"]) == (30, 1)
        # What was on its way when the word came is not to be held; the word takes a moment to be read.
        later = [item.at for item in server.asked if item.at > told.at + 0.2]
        assert len(server.asked) - len(later) <= 9 + 2 * 4
        assert until - 0.001 <= min(later) < until + 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(401, "Incorrect API key provided"), "key was not accepted"),
        (error(429, "You exceeded your current quota", "insufficient_quota"), "no quota left"),
    ],
)
def test_no_quota_and_a_wrong_key_stop_the_run(tmp_path: Path, answer: Answer, words: str) -> None:
    source, out = source_of(tmp_path, 60), tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Answer:
        if len(server.asked) < 20:
            return Answer(upper(body, n).content, delay=0.01)
        return Answer(status=answer.status, body=answer.body, delay=0.01)

    with Loopback(behave) as server:
        stopped = build(source, out, *asks(server, "--concurrency", 5), status=3)
        assert words in stopped["stderr"]
        assert json.loads(answer.body or "")["error"]["message"] in stopped["stderr"]
        assert len(server.asked) <= 20 + 5
        assert not out.exists()
        before, begun = paid(server.asked), len(server.asked)
        server.behave = upper
        assert build(source, out, *asks(server))["kept"] == 60
        assert not set(before) & set(paid(server.asked[begun:]))
        assert len(paid(server.asked)) == 60


def test_too_many_failures_in_a_row_stop_the_run(tmp_path: Path) -> None:
    source, out = source_of(tmp_path, 60), tmp_path / "p.parquet"
    flags = ["--retries", 0, "--concurrency", 3, "--max-consecutive-failures", 7]

    def behave(body: dict[str, Any], n: int) -> Answer:
        return upper(body, n) if len(server.asked) < 10 else error(500, "it broke")

    with Loopback(behave) as server:
        stopped = build(source, out, *asks(server, *flags), status=3)
        assert "7 rows in a row have failed" in stopped["stderr"]
        assert "it broke" in stopped["stderr"]
        # A row ends once its failure is on disk; each of those under way may have failed by then.
        assert 10 + 7 <= len(server.asked) <= 10 + 7 + (3 * 5 // 4 + 16)
        begun = len(server.asked)
        server.behave = upper
        assert build(source, out, *asks(server, *flags))["kept"] == 60
        assert len(server.asked) - begun == 50


def test_a_server_that_works_in_between_does_not_stop_the_run(tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Answer:
        return upper(body, n) if len(server.asked) % 3 == 0 else error(404, "not this one")

    flags = ["--retries", 0, "--concurrency", 1, "--max-consecutive-failures", 7]
    with Loopback(behave) as server:
        summary = build(source_of(tmp_path, 60), out, *asks(server, *flags))
    assert (summary["kept"], summary["failures"]) == (20, {"http_4xx": 40})


def test_tokens_that_the_server_does_not_tell_are_counted_here(tmp_path: Path) -> None:
    source, out = source_of(tmp_path, 9), tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Answer:
        content = upper(body, n).content
        return Answer(content, usage=None) if len(server.asked) % 3 else Answer(content)

    with Loopback(behave) as server:
        summary = build(source, out, *asks(server, "--price", "10,30"))
        untold = [item for item in server.asked if item.answer.usage is None]
        again = clair("build-pairs", "--input", source, "--output", out, *asks(server))
        assert len(server.asked) == 9
    ours = sum(tokens.count_requests([item.body["messages"] for item in untold], "m"))
    theirs = sum(tokens.count_texts([item.answer.content or "" for item in untold], "m"))
    assert (summary["calls"], summary["calls_counted_here"]) == (9, 6)
    assert (summary["tokens_in"], summary["tokens_out"]) == (30 + ours, 15 + theirs)
    assert summary["cost_usd"] == pytest.approx(_usd(30 + ours, 15 + theirs))
    assert "told no tokens for 6 calls: counted here" in again.stdout


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_prompt_that_the_server_cut_is_seen(tmp_path: Path, more: list[str]) -> None:
    source, out = source_of(tmp_path, 6, words=1500), tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Answer:
        ours = tokens.count_requests([body["messages"]], "m")[0]
        seen = 1024 if "Question 2?" in body["messages"][0]["content"] else ours - 3
        return Answer(upper(body, n).content, usage={"prompt_tokens": seen, "completion_tokens": 1500})

    with Loopback(behave) as server:
        done = clair("build-pairs", "--input", source, "--output", out, *asks(server, *more))
        assert done.returncode == 0, done.stderr
        assert "WARNING: m saw only 1,024 tokens" in done.stderr
        assert "WARNING: 1 pairs were made from prompts that the server cut" in done.stdout
        flagged = [row["prompt"][0]["content"] for row in rows(out) if "prompt_cut" in row["flags"]]
        assert flagged == ["Question 2?"]
        fewer = build(source, out, *asks(server, *more), "--drop", "prompt_cut")
        assert (fewer["kept"], fewer["filtered"], fewer["flags"]["prompt_cut"]) == (5, 1, 1)
        assert len(server.asked) == 6
    assert dropped(out)[0]["reason"] == "prompt_cut"


def test_requests_a_minute_are_kept(tmp_path: Path) -> None:
    """Tries again count as well."""

    def behave(body: dict[str, Any], n: int) -> Answer:
        return error(500, "once") if n == 0 and len(server.asked) % 4 == 0 else upper(body, n)

    with Loopback(behave) as server:
        begun = time.monotonic()
        summary = build(source_of(tmp_path, 20), tmp_path / "p.parquet", *asks(server, "--rpm", 900))
        wall = time.monotonic() - begun
        at = [item.at for item in server.asked]
    assert summary["kept"] == 20
    assert len(at) == 20 + summary["retries"] > 20
    between = 60 / 900
    assert wall >= (len(at) - 1) * between
    # On the way to the server one may lose time and the next one not.
    for gap in (1, 5, len(at) - 1):
        for first, last in zip(at, at[gap:], strict=False):
            assert last - first >= gap * between - 0.25, gap


@pytest.mark.parametrize("capped", [True, False])
def test_the_cost_cap_is_kept_and_a_higher_one_goes_on(tmp_path: Path, capped: bool) -> None:
    source, out = source_of(tmp_path, 80, words=60), tmp_path / "p.parquet"
    dice = random.Random(5)
    # Without a cap on the output the longest reply so far stands for it, with half as much again.
    shortest = 40 if capped else 350

    def behave(body: dict[str, Any], n: int) -> Answer:
        ours = tokens.count_requests([body["messages"]], "m")[0]
        usage = {
            "prompt_tokens": int(ours * dice.uniform(0.8, 1.15)),
            "completion_tokens": dice.randint(shortest, 500),
        }
        return Answer(upper(body, n).content, usage=usage, delay=dice.uniform(0, 0.02))

    flags = ["--price", "10,30", "--concurrency", 16, *(["--max-tokens", 500] if capped else [])]
    spent = 0.0
    with Loopback(behave) as server:
        for cap in (0.1, 0.3):
            stopped = build(source, out, *asks(server, *flags, "--max-cost", cap), status=3)
            assert f"--max-cost {cap:g}" in stopped["stderr"]
            before, spent = spent, _cost(server.asked)
            # It goes as far as is sure.
            assert max(before, cap - 0.06) < spent <= cap
            assert not out.exists()
        summary = build(source, out, *asks(server, *flags, "--max-cost", 100))
        assert summary["kept"] == len(server.asked) == len(set(paid(server.asked))) == 80
        assert summary["cost_usd"] == pytest.approx(_cost(server.asked))


def test_a_budget_that_a_server_told_once_holds_no_run_for_ever() -> None:
    """One refusal says how much a second allows; no later reply says anything of it."""

    def behave(body: dict[str, Any], n: int) -> Answer:
        told = ("limit", "20"), ("remaining", "0"), ("reset", "100ms")
        headers = {f"x_ratelimit_{name}_requests": value for name, value in told}
        return Answer() if len(server.asked) else error(429, "slow down", **headers)

    async def ask() -> list[Sent]:
        client = EndpointClient(Endpoint(server.url, concurrency=8))
        request = Request("m", [{"role": "user", "content": "hi"}])
        try:
            async with asyncio.timeout(4):
                return await asyncio.gather(*(client.send(request) for _ in range(60)))
        finally:
            await client.close()

    with Loopback(behave) as server:
        assert len(asyncio.run(ask())) == 60


def test_a_dry_run_sends_nothing_and_foretells_real_calls(shared_data: Path, tmp_path: Path) -> None:
    real = [json.loads(line) for line in (shared_data / "clair_transcripts.jsonl").read_text().splitlines()]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({k: r[k] for k in ("prompt", "response")}) + "\n" for r in real))
    known = {row["prompt"]: row for row in real}

    def behave(body: dict[str, Any], _: int) -> Answer:
        row = known[asked_about(body)[0]]
        return Answer(row["reviser_reply"], row["finish_reason"], usage=row["usage"])

    out, files = tmp_path / "p.parquet", sorted(tmp_path.iterdir())
    with Loopback(behave) as server:
        flags = ["--reviser", real[0]["model"], "--reviser-url", server.url, "--price", "10,30"]
        told = build(source, out, *flags, "--dry-run")
        assert server.asked == []
        assert sorted(tmp_path.iterdir()) == files
        took = build(source, out, *flags)
        assert took["kept"] + took["unchanged"] == len(real) == told["rows_in"] == len(server.asked)
        for name in ("calls", "tokens_in", "tokens_out", "cost_usd"):
            assert told[name]["low"] <= took[name] <= told[name]["high"], name
        later = build(source, out, *flags, "--dry-run")
        assert (later["calls"]["high"], later["calls_from_ledger"]) == (0, len(real))


def test_headers_of_the_environment_are_sent_and_kept_secret(tmp_path: Path) -> None:
    source, out = source_of(tmp_path, 3), tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Answer:
        if "Question 0?" in body["messages"][0]["content"]:
            return error(400, f"who is {SECRET}?")
        if "Question 1?" in body["messages"][0]["content"]:
            return Answer(body=json.dumps({"header": f"Bearer {SECRET}"}))
        return Answer(marked(f"The header is {SECRET}."))

    env = {
        "OPENAI_ORG_ID": "org-1",
        "OPENAI_PROJECT_ID": "proj-2",
        "OPENAI_CUSTOM_HEADERS": f"X-Gateway-Token: {SECRET}\nX-Team: blue: green",
        "CLAIR_APO_DEBUG": "1",
    }
    with Loopback(behave) as server:
        done = clair("build-pairs", "--input", source, "--output", out, *asks(server), env=env)
        assert done.returncode == 0, done.stderr
        for item in server.asked:
            sent = {name.lower(): value for name, value in item.headers.items()}
            assert (sent["openai-organization"], sent["openai-project"]) == ("org-1", "proj-2")
            assert (sent["x-gateway-token"], sent["x-team"]) == (SECRET, "blue: green")
    assert (len(rows(out)), len(failures(out))) == (1, 2)
    assert rows(out)[0]["chosen"][0]["content"] == "The header is [key]."
    assert SECRET not in done.stdout + done.stderr
    outputs = [path for path in tmp_path.rglob("p.*") if path.is_file()] + list(tmp_path.glob("p.run/*"))
    assert len(outputs) >= 5
    for path in outputs:
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text = json.dumps(rows(path), default=str).encode()
        assert SECRET.encode() not in text, path


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_reply_of_a_hundred_megabytes_costs_its_own_row_only(tmp_path: Path, more: list[str]) -> None:
    source, out = source_of(tmp_path, 12), tmp_path / "p.parquet"
    piece = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 1_000_000}}]})

    def behave(body: dict[str, Any], n: int) -> Answer:
        if asked_about(body)[0] != "Question 5?":
            return reply(asked_about(body)[1])
        if more:
            return Answer(body=f"data: {piece}\n\n" * 100, headers={"Content-Type": "text/event-stream"})
        return Answer("x" * 100_000_000)

    with Loopback(behave) as server:
        summary = build(source, out, *asks(server, *more))
        assert (summary["kept"], summary["failures"]) == (11, {"invalid_reply": 1})
        assert len(server.asked) == 12, "a reply that is paid is not asked for again"
    assert [row["prompt"] for row in failures(out)] == ["Question 5?"]
    assert "longer than" in failures(out)[0]["message"]
    assert sum(path.stat().st_size for path in tmp_path.rglob("p.*") if path.is_file()) < 10_000_000


def test_a_server_that_moved_is_followed_but_to_no_other_host(tmp_path: Path) -> None:
    source = source_of(tmp_path, 20)
    key = {"OPENAI_API_KEY": "sk-test-5f2b9d1ce8a7"}
    with Loopback(upper) as server, Loopback(upper) as other:
        server.moved = {"/v1/chat/completions": "/eu/v2/chat/completions"}
        summary = build(
            source, tmp_path / "p.parquet", *asks(server, "--concurrency", 1), "--timeout", 20, env=key
        )
        assert (summary["kept"], summary["retries"]) == (20, 0)
        paths = [item.path for item in server.asked]
        assert paths == ["/v1/chat/completions"] + ["/eu/v2/chat/completions"] * 20
        assert all(item.headers["Authorization"].startswith("Bearer") for item in server.asked)

        elsewhere = other.url.replace("127.0.0.1", "localhost")
        server.moved = {"/v1/chat/completions": f"{elsewhere}/chat/completions"}
        flags = [*asks(server), "--max-consecutive-failures", 0]
        summary = build(source, tmp_path / "q.parquet", *flags, env=key)
        assert summary["failures"] == {"invalid_reply": 20}
        assert other.asked == [], "the key went to another host"
        assert "sends elsewhere: http://localhost" in failures(tmp_path / "q.parquet")[0]["message"]


def _cost(asked: list[Asked]) -> float:
    usages = [item.answer.usage or {} for item in asked if item.replied is not None]
    return sum(_usd(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages)


def _usd(tokens_in: int, tokens_out: int) -> float:
    return (tokens_in * PRICE[0] + tokens_out * PRICE[1]) / 1e6
