"""`--batch submit | status | collect` with services that behave as is documented, and with files."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from batches import BatchLoopback
from clair_apo import build_pairs
from clair_apo.build import batch
from clair_apo.cli import main
from clair_apo.errors import ClairError, StoppedEarly, UsageError
from clair_apo.llm import batch_files
from clair_apo.llm.batch_files import Limits
from cli import clair, failures, rows, start, texts, write_prompts
from loopback import Answer, Loopback, error, upper, wait_for
from messages_api import checked, failure, revises
from players import Players

APIS = ("openai", "anthropic")
PRICE = (10.0, 30.0)


def source_of(folder: Path, count: int) -> Path:
    return write_prompts(
        folder / "in.parquet",
        prompt=[f"Question {number}?" for number in range(count)],
        response=[f"an answer with words {number}." for number in range(count)],
    )


def revising(api: str) -> Any:
    return checked(revises) if api == "anthropic" else upper


def flags(source: Path, server: Loopback, api: str, **more: Any) -> dict[str, Any]:
    folder = source.parent
    return {
        "input": str(source),
        "output": str(folder / "p.parquet"),
        "reviser": "m",
        "reviser_url": server.url,
        "api": api,
        **more,
    }


def go(batch: str, known: dict[str, Any], **more: Any) -> dict[str, Any]:
    result = build_pairs(**known, batch=batch, **more)
    return {**result["batch"], **result}


@pytest.mark.parametrize("api", APIS)
def test_there_and_back(tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    source = source_of(tmp_path, 3)
    with BatchLoopback(revising(api)) as server:
        known = flags(source, server, api, price=PRICE)
        first = go("submit", known)
        assert (first["submitted"], first["open"], len(server.batches)) == (3, 3, 1)
        assert go("submit", known)["submitted"] == 0, "what is under way is not submitted again"
        header = server.headers[0]
        assert (header.get("x-api-key") or header["authorization"].split()[1]) == key
        with pytest.raises(ClairError, match="second time"):
            build_pairs(**known)
        with pytest.raises(UsageError, match="would be lost"):
            go("submit", known, fresh=True)
        assert go("status", known)["batches"][0]["status"] == "in_progress"
        waiting = go("collect", known)
        assert (waiting["replies"], waiting["open"], "rows_in" in waiting) == (0, 3, False)
        assert not (tmp_path / "p.parquet").exists()
        server.finish()
        assert go("status", known)["batches"][0]["done"] == 3
        done = go("collect", known)
        assert (done["replies"], done["open"], done["to_submit"], done["kept"]) == (3, 0, 0, 3)
        assert (done["calls"], done["tokens_in"], done["tokens_out"]) == (3, 30, 15)
        assert done["cost_usd"] == pytest.approx((30 * 10 + 15 * 30) / 1e6 / 2)
        assert rows(tmp_path / "p.parquet")[1]["chosen"][0]["content"] == "AN ANSWER WITH WORDS 1."
        assert not list((tmp_path / "p.run" / "batches").iterdir())
        again = build_pairs(**known)
        assert (again["calls_from_ledger"], again["calls"], len(server.asked)) == (3, 3, 0)
        assert again["cost_usd"] == done["cost_usd"]
        assert sum(row["usage"]["cost_usd"] for row in rows(tmp_path / "p.parquet")) == pytest.approx(
            done["cost_usd"]
        )
        assert len(server.answered) == 3
        one_by_one = flags(source, server, api, output=str(tmp_path / "q.parquet"))
        build_pairs(**one_by_one)
        assert texts(tmp_path / "p.parquet") == texts(tmp_path / "q.parquet")
    assert not any(key.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("status", ["expired", "cancelled"])
@pytest.mark.parametrize("api", APIS)
def test_a_batch_that_ended_early(tmp_path: Path, api: str, status: str) -> None:
    with BatchLoopback(revising(api)) as server:
        known = flags(source_of(tmp_path, 8), server, api)
        go("submit", known)
        server.finish(0.625, status)
        part = go("collect", known)
        assert (part["replies"], part["left"], part["to_submit"], part["open"]) == (5, 3, 3, 0)
        assert (part["kept"], part["waiting"], len(rows(tmp_path / "p.parquet"))) == (5, 3, 5)
        assert part["batches"][0]["left"] == 3
        assert go("submit", known)["submitted"] == 3
        server.finish()
        done = go("collect", known)
        assert (done["replies"], done["kept"], done["calls"]) == (3, 8, 8)
        assert len(server.answered) == len(set(server.answered)) == 8, "nothing was paid twice"


def test_rounds(tmp_path: Path) -> None:
    """What does not hang on another reply goes out at once: a round for the samples, one for the judge."""
    prompts = [f"Question {number}?" for number in range(2)]
    players = Players(samples={p: [f"{p} one", f"{p} twoo", f"{p} three"] for p in prompts})
    source = write_prompts(tmp_path / "in.parquet", prompt=prompts)
    with BatchLoopback(players) as server:
        known = {
            "input": str(source),
            "output": str(tmp_path / "p.parquet"),
            "method": "on-policy-judge",
            "samples": 3,
            "model": "student",
            "model_url": server.url,
            "judge": "judge",
            "judge_url": server.url,
        }
        assert go("submit", known)["submitted"] == 6
        server.finish()
        first = go("collect", known)
        assert (first["replies"], first["to_submit"]) == (6, 12)
        assert go("submit", known)["submitted"] == 12
        server.finish()
        done = go("collect", known)
        assert (done["kept"], done["calls"], done["judge"]["comparisons"]) == (2, 18, 6)
        in_batches = texts(tmp_path / "p.parquet")
        build_pairs(**{**known, "output": str(tmp_path / "q.parquet")}, concurrency=1)
        longest = [(row[2][0]["content"], row[3][0]["content"]) for row in in_batches]
        assert longest == [(f"{p} three", f"{p} one") for p in prompts]
        assert longest == [(r[2][0]["content"], r[3][0]["content"]) for r in texts(tmp_path / "q.parquet")]


@pytest.mark.parametrize("api", APIS)
def test_failures_are_of_their_kind(tmp_path: Path, api: str) -> None:
    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        if "Question 0" in said:
            return (
                error(400, "no such parameter")
                if api == "openai"
                else failure(400, "invalid_request_error", "no such parameter")
            )
        if "Question 1" in said and n == 0:
            return error(429, "slow down") if api == "openai" else failure(429, "rate_limit_error", "slow")
        if "Question 2" in said and n == 0:
            return error(503, "busy") if api == "openai" else failure(529, "overloaded_error", "busy")
        reply: Answer = revising(api)(body, n)
        return reply

    with BatchLoopback(behave) as server:
        known = flags(source_of(tmp_path, 4), server, api)
        go("submit", known)
        server.finish()
        first = go("collect", known)
        assert (first["replies"], first["failures"]) == (
            1,
            {"http_4xx": 1, "rate_limited": 1, "http_5xx": 1},
        )
        assert first["kept"] == 1
        assert {row["kind"] for row in failures(tmp_path / "p.parquet")} == {
            "http_4xx",
            "http_5xx",
            "rate_limited",
        }
        assert go("submit", known)["submitted"] == 2, "only where the way failed"
        server.finish()
        done = go("collect", known)
        assert (done["kept"], done["failures"]) == (3, {"http_4xx": 1})
        assert go("submit", known, retry_failed=True)["submitted"] == 1


@pytest.mark.parametrize("api", APIS)
def test_batches_are_split(tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchLoopback(revising(api)) as server:
        known = flags(source_of(tmp_path, 5), server, api)
        monkeypatch.setitem(batch_files.LIMITS, api, Limits(2, 1 << 20))
        assert go("submit", known)["submitted"] == 5
        assert [len(batch.requests) for batch in server.batches.values()] == [2, 2, 1]
        size = max(path.stat().st_size for path in (tmp_path / "p.run" / "batches").iterdir())
        server.finish()
        assert go("collect", known)["kept"] == 5
        monkeypatch.setitem(batch_files.LIMITS, api, Limits(50, size))
        go("submit", {**known, "output": str(tmp_path / "q.parquet")})
        assert [len(batch.requests) for batch in server.batches.values()][3:] == [2, 2, 1]


@pytest.mark.parametrize(
    ("api", "path"),
    [("openai", "/v1/files"), ("openai", "/v1/batches"), ("anthropic", "/v1/messages/batches")],
)
def test_a_kill_between_a_step_and_its_record(tmp_path: Path, api: str, path: str) -> None:
    """The service has done its part, and the answer never came home."""
    source = source_of(tmp_path, 3)
    with BatchLoopback(revising(api)) as server:
        for count in (1, 2):  # others of the same account, older
            server.add(count)
        server.slow.add(path)
        running = start(
            "build-pairs",
            *("--input", source, "--output", tmp_path / "p.parquet", "--reviser", "m"),
            *("--reviser-url", server.url, "--api", api, "--batch", "submit"),
        )
        wait_for(lambda: bool(server.files) if path == "/v1/files" else len(server.batches) == 3, 60)
        running.kill()
        running.communicate()
        server.slow.clear()
        server.add(2)
        known = flags(source, server, api)
        left = tmp_path / "p.run" / "batches" / ".0001-reviser.results.jsonl.outpu.ab.tmp"
        left.write_text("half of a file that was on its way")
        again = go("submit", known)
        assert (again["submitted"], again["open"]) == (0, 3)
        assert not left.exists()
        ours = [
            b for b in server.batches.values() if not any(name.startswith("theirs") for name in b.requests)
        ]
        assert len(ours) == 1, "one batch, however often it was submitted"
        server.behave = revising(api)
        for batch in server.batches.values():
            if batch not in ours:
                batch.status = "cancelled"
        server.finish()
        assert go("collect", known)["kept"] == 3
        assert len(server.answered) == 3


def test_a_batch_that_only_looked_like_ours(tmp_path: Path) -> None:
    """Anthropic's batches bear no name of ours: one of the same size and time is known by its results."""
    source = source_of(tmp_path, 3)
    with BatchLoopback(revising("anthropic")) as server:
        known = flags(source, server, "anthropic")
        server.refuse = web.Response(status=500, text="{}")  # nobody knows whether it was created
        with pytest.raises(ClairError, match="run the same command again"):
            go("submit", known)
        server.refuse = None
        theirs = server.add(3)
        assert go("submit", known)["batches"][0]["id"] == theirs.id
        theirs.requests.clear()
        theirs.outputs = [json.dumps({"raw": '{"custom_id": "theirs-1", "result": {"type": "expired"}}'})]
        theirs.status = "completed"
        assert go("collect", known)["open"] == 3
        again = go("submit", known)
        assert (again["submitted"], again["batches"][0]["id"] != theirs.id) == (0, True)
        server.finish()
        assert go("collect", known)["kept"] == 3


def test_a_refused_batch_can_be_submitted_later(tmp_path: Path) -> None:
    with BatchLoopback(upper) as server:
        known = flags(source_of(tmp_path, 2), server, "openai")
        body = {"error": {"message": "Enqueued token limit reached", "code": "token_limit_exceeded"}}
        server.refuse = web.json_response(body, status=400)
        with pytest.raises(StoppedEarly, match="Enqueued token limit"):
            go("submit", known)
        server.refuse = None
        assert go("submit", known)["open"] == 2
        assert len(server.files) == 1, "the file was there already"


@pytest.mark.parametrize("api", APIS)
def test_odd_lines(tmp_path: Path, api: str) -> None:
    with BatchLoopback(revising(api)) as server:
        known = flags(source_of(tmp_path, 4), server, api)
        go("submit", known)
        server.finish()
        (batch,) = server.batches.values()
        repeated, broken, good, _ = batch.outputs
        wrong = json.loads(good)
        other = wrong["custom_id"].replace(wrong["custom_id"][:8], "00000000")
        batch.outputs[1] = json.dumps(
            {"raw": '{"custom_id": "' + json.loads(broken)["custom_id"] + '", "resp'}
        )
        batch.outputs += [repeated, json.dumps({**wrong, "custom_id": other})]
        batch.outputs += [json.dumps({**wrong, "custom_id": "2"}), json.dumps({"raw": "[1]"})]
        found = go("collect", known)
        assert (found["replies"], found["repeated"], found["unknown"], found["unreadable"]) == (3, 1, 2, 2)
        assert (found["to_submit"], found["batches"][0]["left"]) == (1, 1)
        assert go("submit", known)["submitted"] == 1
        server.finish()
        done = go("collect", known)
        assert (done["kept"], done["calls"]) == (4, 4)


def results_of(requests: Path) -> list[dict[str, Any]]:
    """The lines that `vllm run-batch` writes for a file of requests."""
    found = []
    for line in requests.read_text("utf-8").splitlines():
        asked = json.loads(line)
        assert (asked["method"], asked["url"]) == ("POST", "/v1/chat/completions")
        body = json.loads(upper(asked["body"], 0).text(asked["body"]))
        response = {"status_code": 200, "request_id": "vllm-batch-1", "body": body}
        found.append({"id": "vllm-1", "custom_id": asked["custom_id"], "response": response, "error": None})
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_files_for_vllm(tmp_path: Path) -> None:
    source = source_of(tmp_path, 4)
    folder = tmp_path / "files"
    known = {"input": str(source), "output": str(tmp_path / "p.parquet"), "reviser": "m/x", "price": PRICE}
    known["batch_dir"] = str(folder)
    done = clair(
        "build-pairs",
        *("--input", source, "--output", known["output"], "--reviser", "m/x", "--batch-dir", folder),
        *("--batch", "submit"),
    )
    assert done.returncode == 0, done.stderr
    command = re.search(r"vllm run-batch -i (\S+) -o (\S+) --model m/x", done.stdout)
    assert command
    requests, results = Path(command[1]), Path(command[2])
    assert go("collect", known)["open"] == 4
    lines = results_of(requests)
    failed = {"error": {"message": "prompt is too long", "type": "BadRequestError", "code": 400}}
    response = {"status_code": 400, "request_id": "vllm-batch-2", "body": None}
    lines[3] |= {"response": response, "error": failed}
    write_lines(results, lines[:2])
    assert go("status", known)["batches"][0]["done"] == 2
    part = go("collect", known)
    assert (part["replies"], part["open"], part["batches"][0]["replies"]) == (2, 4, 2)
    write_lines(results, lines)
    end = go("collect", known)
    assert (end["kept"], end["failures"], end["calls"]) == (3, {"context_length": 1}, 4)
    assert end["cost_usd"] == pytest.approx(3 * (10 * 10 + 5 * 30) / 1e6), (
        "a server of one's own has no rebate"
    )
    assert requests.exists()


def test_files_that_are_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {
        "input": str(source_of(tmp_path, 3)),
        "output": str(tmp_path / "p.parquet"),
        "reviser": "m",
        "batch_dir": str(tmp_path / "files"),
    }
    (batch,) = go("submit", known)["batches"]
    write_lines(Path(batch["results"]), results_of(Path(batch["requests"]))[:1])
    assert go("collect", known)["replies"] == 1
    (tmp_path / "files").rename(tmp_path / "elsewhere")
    known["batch_dir"] = str(tmp_path / "elsewhere")  # a folder that moves is no folder that is gone
    moved = go("collect", known)
    assert (moved["replies"], moved["open"]) == (0, 3)
    assert "given up" not in capsys.readouterr().err
    Path(moved["batches"][0]["requests"]).unlink()
    assert [each["status"] for each in go("status", known)["batches"]] == ["its requests are gone"]
    command = ["build-pairs", "--reviser", "m", "--batch", "submit", "--json"]
    command += [f"--{name.replace('_', '-')}={known[name]}" for name in ("input", "output", "batch_dir")]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "batch 1 is given up" in told.err
    again = json.loads(told.out)["batch"]
    assert (again["submitted"], again["open"]) == (2, 2)
    with pytest.raises(UsageError, match="chat completions"):
        go("submit", known, api="anthropic")
    with pytest.raises(UsageError, match="--batch submit"):
        build_pairs(**known)


@pytest.mark.parametrize("api", APIS)
def test_max_cost(tmp_path: Path, api: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(tmp_path, 4)
    with BatchLoopback(revising(api)) as server:
        known = flags(source, server, api, price=PRICE, max_tokens=1000)
        dry = build_pairs(**known, dry_run=True)
        half = build_pairs(**known, dry_run=True, batch="submit")
        assert half["cost_usd"]["high"] == pytest.approx(dry["cost_usd"]["high"] / 2)
        first = go("submit", known, max_cost=0.04)  # each may cost 1,000 tokens out: 0.015, and its prompt
        assert (first["submitted"], first["left_out"]) == (2, 2)
        assert go("submit", known, max_cost=0.04)["submitted"] == 0
        command = ["build-pairs", "--input", source, "--output", known["output"], "--reviser", "m"]
        command += ["--api", api, "--reviser-url", server.url, "--price", "10,30", "--max-tokens", 1000]
        assert main([str(word) for word in [*command, "--max-cost", 0.04, "--batch", "submit"]]) == 3
        assert "2 calls were not submitted" in capsys.readouterr().err
        server.finish()
        assert go("collect", known)["to_submit"] == 2
        assert go("submit", known, max_cost=0.04)["submitted"] == 2, "it cost less than it might have"


def test_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(tmp_path, 2)

    def shown(*more: object) -> str:
        command = ["build-pairs", "--input", source, "--output", tmp_path / "p.parquet", "--reviser", "m"]
        assert main([str(word) for word in [*command, *more]]) == 0
        return capsys.readouterr().out

    with BatchLoopback(upper) as server:
        at = ("--reviser-url", server.url, "--batch")
        assert "2 calls submitted" in shown(*at, "submit")
        assert re.search(r"1 +reviser +m +2 +0 +0 +in_progress +batch_0", shown(*at, "status"))
        server.finish()
        done = shown(*at, "collect")
        assert "2 replies and 0 failures collected" in done
        assert re.search(r"2 kept", done)
    with pytest.raises(UsageError, match="in this process"):
        build_pairs(input=str(source), output=str(tmp_path / "q.parquet"), batch="submit")


def test_a_start_that_ends_between_the_replies_and_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with BatchLoopback(upper) as server:
        known = flags(source_of(tmp_path, 3), server, "openai", price=PRICE)
        go("submit", known)
        server.finish()
        with monkeypatch.context() as patch:
            patch.setattr(batch, "_close", killed)
            with pytest.raises(KeyboardInterrupt):
                go("collect", known)
        done = go("collect", known)
        assert (done["replies"], done["batches"][0]["replies"], done["calls"]) == (0, 3, 3)
        assert done["cost_usd"] == pytest.approx(3 * (10 * 10 + 5 * 30) / 1e6 / 2)


def test_a_batch_that_the_service_has_no_more(tmp_path: Path) -> None:
    with BatchLoopback(upper) as server:
        known = flags(source_of(tmp_path, 2), server, "openai")
        go("submit", known)
        lost = server.batches.copy()
        server.batches.clear()
        with pytest.raises(ClairError, match=r"remove .*requests\.jsonl"):
            go("collect", known)
        (path,) = (tmp_path / "p.run" / "batches").iterdir()
        path.unlink()
        assert go("collect", known)["to_submit"] == 2
        server.batches = {"batch_old": lost["batch_0"]}
        assert go("submit", known)["submitted"] == 2
        server.batches.pop("batch_old")
        server.finish()
        assert go("collect", known)["kept"] == 2


OWN = """
from clair_apo.build.methods import REVISER, Answer, Draft, Method


class Twice(Method):
    name = "twice"
    asks = (REVISER,)

    async def __call__(self, row, talk):
        first = await talk.revise(Answer(row.response))
        return Draft(await talk.revise(first), first)
"""


def test_a_method_of_ones_own_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twice_in_batches.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def behave(body: dict[str, Any], n: int) -> Answer:
        reply = upper(body, n)
        assert reply.content
        return Answer(reply.content + "!" * body["messages"][0]["content"].count("AN ANSWER"))

    with BatchLoopback(behave) as server:
        known = flags(source_of(tmp_path, 2), server, "openai", method="twice_in_batches:Twice")
        for to_submit in (2, 0):
            assert go("submit", known)["submitted"] == 2
            server.finish()
            done = go("collect", known)
            assert done["to_submit"] == to_submit
        assert (done["kept"], done["calls"]) == (2, 4)


def test_what_openai_itself_is_sent(tmp_path: Path) -> None:
    from clair_apo.llm.chat import Request

    call = (bytes(range(16)), 3)
    request = Request("m", [{"role": "user", "content": "x"}], {"max_tokens": 7})
    line = json.loads(batch_files.request_line("openai", "https://api.openai.com/v1", call, request))
    assert line["body"]["max_completion_tokens"] == 7
    assert "max_tokens" not in line["body"]
    line = json.loads(batch_files.request_line("openai", "http://h/v1", call, request))
    assert line["body"]["max_tokens"] == 7
    assert batch_files.call_of(line["custom_id"]) == call
    for bad in ("", "x-1", "00-", f"{call[0].hex()}-03", f"{call[0].hex().upper()}-3", None, 7):
        assert batch_files.call_of(bad) is None


def test_time_is_told(tmp_path: Path) -> None:
    with BatchLoopback(upper) as server:
        known = flags(source_of(tmp_path, 1), server, "openai")
        go("submit", known)
        (batch,) = go("status", known)["batches"]
        assert batch["expires"].startswith(time.strftime("%Y"))
