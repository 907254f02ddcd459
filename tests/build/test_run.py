"""build-pairs from end to end against a server on loopback: what comes out for what goes in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cli import asks, build, clair, dropped, failures, rows, texts, write_prompts
from loopback import Answer, Loopback, error, marked, upper

KEY = "sk-test-5f2b/9d1c+e8a7"
PASSWORD = "hush-5f2b9d1ce8a7"


def test_pairs_come_out_in_order_with_their_other_columns(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    with Loopback(upper) as server:
        summary = build(three, out, *asks(server))
    pairs = rows(out)
    assert [p["chosen"][0]["content"] for p in pairs] == ["FIRST.", "SECOND.", "THIRD."]
    assert [p["rejected"][0]["content"] for p in pairs] == ["First.", "Second.", "Third."]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "one?"}]
    assert [p["extra"] for p in pairs] == [{"topic": "a"}, {"topic": None}, {"topic": "c"}]
    assert pairs[0]["rationale"] == "It can be clearer."
    assert pairs[0]["levenshtein"] == 4
    assert pairs[0]["method"] == "clair"
    assert pairs[0]["template"] == "paper@1"
    assert pairs[0]["usage"] == {"calls": 1, "tokens_in": 10, "tokens_out": 5, "cost_usd": None}
    assert summary["rows_in"] == summary["kept"] == summary["calls"] == 3
    assert (summary["tokens_in"], summary["tokens_out"], summary["retries"]) == (30, 15, 0)
    assert json.loads((tmp_path / "pairs.run" / "summary.json").read_text()) == summary
    assert failures(out) == []
    assert dropped(out) == []


def test_responses_are_sampled_where_they_are_missing(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["q1", "q2"], response=["Given.", None])

    def behave(body: dict[str, Any], n: int) -> Answer:
        if body["model"] == "student":
            assert body == {
                "model": "student",
                "messages": [{"role": "user", "content": "q2"}],
                "temperature": 0.5,
            }
            return Answer("<think>hm</think>\nSampled.")
        assert body["max_tokens"] == 99
        return upper(body, n)

    out = tmp_path / "p.jsonl"
    with Loopback(behave) as server:
        build(
            source,
            out,
            *asks(server),
            "--model",
            "student",
            "--model-url",
            server.url,
            "--model-temperature",
            0.5,
            "--max-tokens",
            99,
        )
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [
        (p["rejected"][0]["content"], p["chosen"][0]["content"], p["rejected_model"]) for p in pairs
    ] == [("Given.", "GIVEN.", "student"), ("Sampled.", "SAMPLED.", "student")]


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": turns}) + "\n")

    def behave(body: dict[str, Any], n: int) -> Answer:
        if body["model"] == "student":
            assert body["messages"] == turns
            return Answer("Because.")
        assert (
            "System: Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: Why?"
            in (body["messages"][0]["content"])
        )
        return upper(body, n)

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        build(source, out, *asks(server), "--model", "student", "--model-url", server.url)
    assert rows(out)[0]["prompt"] == turns


def test_every_failure_is_a_row_of_its_kind(tmp_path: Path) -> None:
    good = "Good answer."
    cases: dict[str, Any] = {
        "http_4xx": error(404, "no such model"),
        "http_5xx": error(500, "it broke"),
        "rate_limited": error(429, "slow down", retry_after_ms="1"),
        "timeout": Answer(delay=20),
        "connection": Answer(marked("x" * 4000), cut=50),
        "refusal": Answer(None, message={"refusal": "I will not."}),
        "refusal spoken": Answer("I'm sorry, but I can't help with that."),
        "empty": Answer("  \n"),
        "empty null": Answer(None),
        "truncated": Answer(marked("cut of"), finish_reason="length"),
        "content_filter": Answer("", finish_reason="content_filter"),
        "content_filter refused": error(400, "filtered", "content_filter"),
        "unparsable": Answer("Here is what I think about it."),
        "context_length": error(400, "too long", "context_length_exceeded"),
        "context_length words": error(400, "This model's maximum context length is 4096 tokens."),
        "invalid_reply": Answer(body="<html>gateway</html>"),
        "invalid_reply unfinished": Answer(marked("fine"), finish_reason=None),
        "invalid_reply no choices": Answer(body='{"choices": []}'),
        "invalid_reply not text": Answer(
            body='{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}'
        ),
        "good": Answer(marked(good)),
    }
    names = list(cases)
    source = write_prompts(
        tmp_path / "in.parquet",
        prompt=[f"<{name}>" for name in names],
        response=["An answer."] * len(names),
    )
    out = tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Answer:
        name = re.search(r"\{task\}: <(.*?)>", body["messages"][0]["content"])
        assert name
        answer: Answer = cases[name[1]]
        return answer

    with Loopback(behave) as server:
        summary = build(source, out, *asks(server), "--timeout", 1, "--retries", 1)
        tries = len([a for a in server.asked if "<http_5xx>" in a.last])
    failed = {row["prompt"]: row for row in failures(out)}
    assert {prompt[1:-1]: row["kind"] for prompt, row in failed.items()} == {
        name: name.split()[0] for name in names if name != "good"
    }
    assert summary["failed"] == len(names) - 1 == sum(summary["failures"].values())
    assert (summary["kept"], summary["rows_in"]) == (1, len(names))
    assert [row["row"] for row in failures(out)] == list(range(len(names) - 1))
    assert failed["<http_5xx>"]["tries"] == tries == 2
    assert failed["<http_5xx>"]["status"] == 500
    assert "it broke" in failed["<http_5xx>"]["message"]
    assert "it broke" in failed["<http_5xx>"]["raw"]
    assert failed["<unparsable>"]["tries"] == 2
    assert "what I think" in failed["<unparsable>"]["raw"]
    assert all(row["stage"] == "revise" and row["id"] for row in failed.values())


def test_a_reply_that_cannot_be_read_is_asked_for_once_more(three: Path, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], n: int) -> Answer:
        if len(body["messages"]) == 1:
            return Answer("Only talk.")
        assert body["messages"][1] == {"role": "assistant", "content": "Only talk."}
        return Answer(marked("Better."))

    with Loopback(behave) as server:
        summary = build(three, tmp_path / "p.parquet", *asks(server))
    assert (summary["kept"], summary["calls"]) == (3, 6)
    assert rows(tmp_path / "p.parquet")[0]["usage"]["calls"] == 2


def test_repeated_rows_are_rows_of_their_own(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["same"] * 3 + ["other"], response=["A."] * 4)
    count = iter(range(100))

    def behave(body: dict[str, Any], _: int) -> Answer:
        return Answer(marked(f"Revision {next(count)}."))

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        first = build(source, out, *asks(server))
        before = texts(out)
        again = build(source, out, *asks(server))
        assert len(server.asked) == 4
    ids = [row["id"] for row in rows(out)]
    assert ids[1:3] == [ids[0] + "-2", ids[0] + "-3"]
    assert len(set(ids)) == 4
    assert len({row["chosen"][0]["content"] for row in rows(out)}) == 4
    assert texts(out) == before
    assert (first["calls_from_ledger"], again["calls_from_ledger"]) == (0, 4)
    assert again["calls"] == 4


def test_unchanged_and_dropped_pairs_stand_in_their_own_table(tmp_path: Path) -> None:
    answers = ["Same  text.", "Long enough to be halved. " * 4, "Normal text here."]
    source = write_prompts(tmp_path / "in.parquet", prompt=["a", "b", "c"], response=answers)
    said = {"a": "Same text.", "b": "Short.", "c": "Normal text there."}

    def behave(body: dict[str, Any], _: int) -> Answer:
        task = re.search(r"\{task\}: (.)", body["messages"][0]["content"])
        assert task
        return Answer(marked(said[task[1]]))

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        kept = build(source, out, *asks(server))
        assert (kept["kept"], kept["unchanged"], kept["filtered"]) == (2, 1, 0)
        assert kept["flags"] == {"edit_ratio": 1, "length_ratio": 1}
        fewer = build(source, out, *asks(server), "--drop", "length_ratio,leaked_frame")
        assert len(server.asked) == 3
    assert (fewer["kept"], fewer["unchanged"], fewer["filtered"]) == (1, 1, 1)
    assert [row["reason"] for row in dropped(out)] == ["unchanged", "length_ratio"]
    assert [row["chosen"][0]["content"] for row in rows(out)] == ["Normal text there."]


def test_minimality_asks_once_more_and_keeps_the_nearer_one(tmp_path: Path) -> None:
    answer = "The quick brown fox jumps over the lazy dog."
    source = write_prompts(tmp_path / "in.parquet", prompt=["a", "b", "c", "d"], response=[answer] * 4)
    near, far, farther = (
        answer.replace("dog", "cat"),
        "Nothing like that at all, really.",
        "Z" * 200,
    )
    replies = {
        "a": [near],
        "b": [far, near],
        "c": [far, farther],
        "d": [far, Answer("", status=400)],
    }

    def behave(body: dict[str, Any], _: int) -> Answer:
        task = re.search(r"\{task\}: (.)", body["messages"][0]["content"])
        assert task
        turn = len(body["messages"]) // 2
        if turn:
            assert "rewrote" in body["messages"][-1]["content"]
        reply = replies[task[1]][turn]
        return reply if isinstance(reply, Answer) else Answer(marked(reply))

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        summary = build(source, out, *asks(server), "--minimality", "0.01..0.3")
    assert [row["chosen"][0]["content"] for row in rows(out)] == [near, near, far, far]
    assert [row["flags"] for row in rows(out)] == [[], [], ["edit_ratio"], ["edit_ratio"]]
    assert summary["calls"] == 7


def test_bad_rows_are_failure_rows_and_good_ones_go_on(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        "\n".join(
            [
                '{"prompt": "fine", "response": "First."}',
                '{"prompt": "", "response": "A."}',
                '{"prompt": null, "response": "A."}',
                '{"prompt": 7, "response": "A."}',
                "{broken",
                '{"prompt": "answer is a number", "response": 7}',
                '{"response": "A."}',
                json.dumps({"prompt": "x" * 5_000_000, "response": "A."}),
                '{"prompt": "\\ud800", "response": "A."}',
                '{"prompt": [{"role": "user"}], "response": "A."}',
                '{"prompt": "also fine", "response": "Last."}',
            ]
        )
        + "\n"
    )
    out = tmp_path / "p.parquet"
    with Loopback(upper) as server:
        summary = build(source, out, *asks(server))
    assert (summary["rows_in"], summary["kept"], summary["failures"]) == (11, 2, {"input": 9})
    messages = [row["message"] for row in failures(out)]
    assert [row["row"] for row in failures(out)] == list(range(1, 10))
    assert all(row["kind"] == row["stage"] == "input" for row in failures(out))
    for message, number in zip(messages, range(1, 10), strict=True):
        assert f"in.jsonl, row {number}" in message
    assert "column 'prompt': the prompt is empty" in messages[0]
    assert "null" in messages[1]
    assert "number" in messages[2]
    assert "not JSON" in messages[3]
    assert "column 'response'" in messages[4]
    assert "4.8 MiB" in messages[6]


def test_faulty_replies_over_real_prompts_are_all_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "prompts_llama3_8b.parquet"
    real = pq.read_table(source).to_pylist()
    faults = [
        error(500, "broken"),
        Answer(marked("cut"), finish_reason="length"),
        Answer(""),
        Answer("no marker"),
        Answer(body="no json"),
        error(400, "no"),
        Answer(None, message={"refusal": "no"}),
        Answer(finish_reason="content_filter"),
    ]
    kinds = [
        "http_5xx",
        "truncated",
        "empty",
        "unparsable",
        "invalid_reply",
        "http_4xx",
        "refusal",
        "content_filter",
    ]
    expected = {number: kinds[number // 5 % 8] for number in range(0, 200, 5)}
    place = {(r["prompt"], r["response"]): i for i, r in enumerate(real)}

    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        number = next(i for (p, r), i in place.items() if p in said and r in said)
        if number in expected:
            return faults[number // 5 % 8]
        return Answer(marked(real[number]["response"] + " More."))

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        summary = build(source, out, *asks(server), "--retries", 1, env={"OPENAI_API_KEY": KEY})
        assert all(a.headers["Authorization"] == f"Bearer {KEY}" for a in server.asked)
    assert {row["row"]: row["kind"] for row in failures(out)} == expected
    assert (
        summary["rows_in"]
        == 200
        == sum(summary[name] for name in ("kept", "unchanged", "filtered", "failed"))
    )
    assert summary["kept"] == 160
    _never(KEY, list(tmp_path.glob("p.*")))


def test_the_key_reaches_no_file_and_no_line(tmp_path: Path) -> None:
    """A server that says the key back, in an error and in a reply."""
    source = write_prompts(tmp_path / "in.parquet", prompt=["a", "b", "c"], response=["x."] * 3)

    def behave(body: dict[str, Any], _: int) -> Answer:
        if "{task}: a" in body["messages"][0]["content"]:
            return error(400, f"bad key {KEY} for you")
        if "{task}: b" in body["messages"][0]["content"]:
            return Answer(body=json.dumps({"key": KEY}).replace("/", "\\/"))
        return Answer(marked(f"The key is {KEY}, or {PASSWORD}."))

    with Loopback(behave) as server:
        done = clair(
            "build-pairs",
            "--input",
            source,
            "--output",
            tmp_path / "p.parquet",
            *asks(server, "--reviser-key-env", "MINE"),
            env={"MINE": KEY, "CLAIR_APO_DEBUG": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
        user = server.url.replace("//", f"//someone:{PASSWORD}@") + f"?key={PASSWORD}"
        also = clair(
            "build-pairs",
            "--input",
            source,
            "--output",
            tmp_path / "q.parquet",
            "--reviser",
            "m",
            "--reviser-url",
            user,
        )
        assert also.returncode == 0, also.stderr
        assert server.asked[-1].headers["Authorization"].startswith("Basic ")
    assert rows(tmp_path / "p.parquet")[0]["chosen"][0]["content"].startswith("The key is [key], or")
    assert rows(tmp_path / "q.parquet")[0]["chosen"][0]["content"].endswith("or [key].")
    assert KEY not in done.stdout + done.stderr
    assert PASSWORD not in also.stdout + also.stderr
    _never(KEY, list(tmp_path.glob("p.*")))
    _never(PASSWORD, list(tmp_path.glob("q.*")))


def _never(secret: str, outputs: list[Path]) -> None:
    """No file of a run, its ledger included, holds `secret`."""
    files = [f for path in outputs for f in (path.rglob("*") if path.is_dir() else [path])]
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content = json.dumps(rows(path), default=str, ensure_ascii=False).encode()
        assert secret.encode() not in content, path


def test_passing_trouble_is_retried(three: Path, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], n: int) -> Answer:
        return [error(503, "busy"), Answer("x" * 5000, cut=10), upper(body, n)][min(n, 2)]

    with Loopback(behave) as server:
        summary = build(three, tmp_path / "p.parquet", *asks(server))
    assert (summary["kept"], summary["retries"], summary["calls"]) == (3, 6, 3)
