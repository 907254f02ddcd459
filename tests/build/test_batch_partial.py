"""`--batch collect` while some is still to come: the pairs that are there, and later all of them, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batches import BatchLoopback
from clair_apo import build_pairs
from clair_apo.cli import main
from clair_apo.llm import batch_files
from clair_apo.llm.batch_files import Limits
from cli import failures, rows, texts, write_prompts
from loopback import Answer, error, upper
from players import Players


def go(batch: str, known: dict[str, Any], **more: Any) -> dict[str, Any]:
    result = build_pairs(**known, batch=batch, **more)
    return {**result["batch"], **result}


def flags(folder: Path, server: BatchLoopback, count: int) -> dict[str, Any]:
    prompts: list[str | None] = [f"Question {number}?" for number in range(count)]
    prompts.append(None)  # a row that cannot be used is a failure from the first
    answers = [f"an answer with words {number}." for number in range(count + 1)]
    return {
        "input": str(write_prompts(folder / "in.parquet", prompt=prompts, response=answers)),
        "output": str(folder / "p.parquet"),
        "reviser": "m",
        "reviser_url": server.url,
    }


def behave(body: dict[str, Any], n: int) -> Answer:
    return error(400, "no such parameter") if "Question 1?" in str(body) else upper(body, n)


def test_the_pairs_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three batches: one is back, one has expired half way, one is still open."""
    monkeypatch.setitem(batch_files.LIMITS, "openai", Limits(4, 1 << 20))
    out = tmp_path / "p.parquet"
    with BatchLoopback(behave) as server:
        known = flags(tmp_path, server, 12)
        assert go("submit", known)["submitted"] == 12
        _, second, third = server.batches.values()
        nothing = go("collect", known)
        assert (nothing["ready"], "rows_in" in nothing, out.exists()) == (0, False, False)
        second.status = third.status = "later"
        server.finish()
        second.status = "in_progress"
        server.finish(0.5, "expired")
        third.status = "in_progress"

        command = ["build-pairs", "--input", known["input"], "--output", known["output"], "--reviser", "m"]
        assert main([*command, "--reviser-url", server.url, "--batch", "collect"]) == 0
        said = capsys.readouterr().out
        assert "4 calls are in open batches" in said
        assert "2 calls can be made by now" in said
        assert "6 waiting  for replies from batches" in said
        part = json.loads((tmp_path / "p.run" / "summary.json").read_text())
        assert (part["rows_in"], part["kept"], part["failed"], part["waiting"]) == (13, 5, 2, 6)
        before = texts(out)
        assert len(before) == 5
        assert {row["kind"] for row in failures(out)} == {"http_4xx", "input"}

        again = go("collect", known)
        assert (again["replies"], again["kept"], again["waiting"], texts(out)) == (0, 5, 6, before)
        assert go("submit", known)["submitted"] == 2
        server.finish()
        done = go("collect", known)
        assert (done["kept"], done["failed"], done["waiting"], done["open"]) == (11, 2, 0, 0)
        whole = texts(out)
        assert len({row[0] for row in whole}) == len(whole) == 11
        assert [row for row in whole if row in before] == before
        assert len(server.answered) == 11, "nothing was paid twice"


def test_a_method_that_waits_for_its_next_round(tmp_path: Path) -> None:
    """Of two methods one is through after the first round, the other needs a second."""
    prompts = [f"Question {number}?" for number in range(2)]
    players = Players(
        samples={p: [f"{p} one", f"{p} twoo"] for p in prompts}, fresh={p: f"{p} fresh" for p in prompts}
    )
    with BatchLoopback(players) as server:
        known = {
            "input": str(write_prompts(tmp_path / "in.parquet", prompt=prompts)),
            "output": str(tmp_path / "p.parquet"),
            "method": "stronger-preferred,on-policy-judge",
            "model": "student",
            "stronger": "stronger",
            "judge": "judge",
            **{f"{role}_url": server.url for role in ("model", "stronger", "judge")},
        }
        assert go("submit", known)["submitted"] == 6
        server.finish()
        part = go("collect", known)
        assert (part["to_submit"], part["kept"], part["waiting"]) == (4, 2, 2)
        assert part["methods"]["on-policy-judge"]["waiting"] == 2
        assert len(rows(tmp_path / "p.stronger-preferred.parquet")) == 2
        assert rows(tmp_path / "p.on-policy-judge.parquet") == []
        go("submit", known)
        server.finish()
        assert (done := go("collect", known))["waiting"] == 0
        assert done["kept"] == 4
        assert len(rows(tmp_path / "p.on-policy-judge.parquet")) == 2


def test_tables_never_hold_less_than_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge is put behind a finished run, in batches: its tables stay until they can be written whole."""
    prompts = [f"Question {number}?" for number in range(4)]
    players = Players(revisions={p: f"Answer to {p} And more." for p in prompts})
    players.revisions[prompts[0]] = f"Answer to {prompts[0]}"  # no change, so no judge is asked
    answers = [f"Answer to {p}" for p in prompts]
    source, out = (
        write_prompts(tmp_path / "in.parquet", prompt=prompts, response=answers),
        tmp_path / "p.parquet",
    )
    with BatchLoopback(players) as server:
        known = {"input": str(source), "output": str(out), "reviser": "reviser", "reviser_url": server.url}
        build_pairs(**known)
        before = texts(out)
        known |= {"judge": "judge", "judge_url": server.url, "verify": True}
        assert go("submit", known)["submitted"] == 6
        server.finish(0.5, "expired")
        held = go("collect", known)
        assert (held["replies"], held["to_submit"], "rows_in" in held) == (3, 3, False)
        assert (held["ready"] + held["waiting"], texts(out)) == (4, before)
        command = [
            f"--{name.replace('_', '-')}={value}" for name, value in known.items() if value is not True
        ]
        assert main(["build-pairs", *command, "--verify", "--batch", "collect"]) == 0
        assert "no tables were written: " in capsys.readouterr().out
        go("submit", known)
        server.finish()
        assert go("collect", known)["kept"] == 3
        assert [row["judge_winner"] for row in rows(out)] == ["chosen"] * 3


def test_what_fails_while_something_before_it_is_to_come(tmp_path: Path) -> None:
    """The judge declines in one order and is to be asked again in the other: the row waits for that, and
    ends as it does without batches."""
    prompts = [f"Question {number}?" for number in range(2)]

    def judge(prompt: str, a: str, b: str) -> str:
        if prompt == prompts[1]:
            return "[[A]]" if len(a) > len(b) else "[[B]]"
        return "It depends." if len(a) > len(b) else "I'm sorry, but I can't help with that."

    players = Players(revisions={p: f"Answer to {p} And more." for p in prompts}, judges={"judge": judge})
    answers = [f"Answer to {p}" for p in prompts]
    with BatchLoopback(players) as server:
        known = {
            "input": str(write_prompts(tmp_path / "in.parquet", prompt=prompts, response=answers)),
            "output": str(tmp_path / "p.parquet"),
            "reviser": "reviser",
            "judge": "judge",
            "verify": True,
            **{f"{role}_url": server.url for role in ("reviser", "judge")},
        }
        for to_submit in (4, 1, 0):
            go("submit", known)
            server.finish()
            done = go("collect", known)
            assert (done["to_submit"], done["open"]) == (to_submit, 0)
        assert (done["kept"], done["waiting"], done["judge"]["no_verdict"]) == (2, 0, {"unparsable": 1})
        build_pairs(**{**known, "output": str(tmp_path / "q.parquet")})
    verdicts = [(row["judge_winner"], row["judge_verdicts"]) for row in rows(tmp_path / "p.parquet")]
    assert verdicts == [
        (row["judge_winner"], row["judge_verdicts"]) for row in rows(tmp_path / "q.parquet")
    ]


def test_a_folder_in_other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open batches stay open where the output is a relative path, and where the folder has moved since."""
    here = tmp_path / "here"
    here.mkdir()
    with BatchLoopback(upper) as server:
        known = flags(here, server, 3) | {"input": "in.parquet", "output": "p.parquet"}
        monkeypatch.chdir(here)
        assert go("submit", known)["submitted"] == 3
        again = go("submit", known)
        assert (again["submitted"], again["open"]) == (0, 3)
        here.rename(there := tmp_path / "there")
        monkeypatch.chdir(there)
        assert go("submit", known | {"output": str(there / "p.parquet")})["submitted"] == 0
        server.finish()
        done = go("collect", known)
        assert (done["replies"], done["open"], done["to_submit"], done["kept"]) == (3, 0, 0, 3)
        assert (len(server.batches), len(server.answered)) == (1, 3), "nothing was paid twice"
