"""What a row goes on without: a verdict that cannot be read, some of several revisions; and how it is asked
for again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import clair_apo
from cli import clair, dropped, failures, rows, write_prompts
from loopback import Answer, Loopback, marked
from players import Players, longer, roles

PROMPTS = [f"Question {n}?" for n in range(4)]


def players() -> Players:
    return Players(
        samples={p: [f"Answer to {p}", f"Another answer to {p}"] for p in PROMPTS},
        revisions={p: f"Answer to {p} And more." for p in PROMPTS},
    )


def flags(folder: Path, server: Loopback, *asked: str, **more: Any) -> dict[str, Any]:
    named = {"model": "student", "reviser": "reviser", "judge": "judge"}
    return {
        "input": write_prompts(folder / "in.parquet", prompt=PROMPTS),
        "output": folder / "p.parquet",
        **{role: named[role] for role in asked},
        **{f"{role}_url": server.url for role in asked},
        **more,
    }


def test_a_pair_without_a_readable_verdict_is_kept_and_says_so(tmp_path: Path) -> None:
    """The judge says nothing that can be read of the first prompt, declines the second, and is sane about
    the others."""
    known, sane = players(), False

    def judge(prompt: str, a: str, b: str) -> str:
        if prompt == PROMPTS[0] and not sane:
            return "It depends."
        if prompt == PROMPTS[1] and not sane:
            return "I'm sorry, but I can't assist with that."
        return longer(prompt, a, b)

    known.judges["judge"] = judge
    out = tmp_path / "p.parquet"
    with Loopback(known) as server:
        verified = flags(tmp_path, server, "model", "reviser", "judge", verify=True)
        summary = clair_apo.build_pairs(**verified)
        assert (summary["kept"], summary["failed"], summary["flags"]) == (4, 0, {"not_verified": 2})
        assert summary["judge"]["no_verdict"] == {"refusal": 1, "unparsable": 1}
        assert (summary["judge"]["comparisons"], summary["judge"]["decided"]) == (4, 2)
        assert failures(out) == []
        found = rows(out)
        assert [row["judge_winner"] for row in found] == ["unparsable", "refusal", "chosen", "chosen"]
        assert [row["flags"] for row in found] == [["not_verified"]] * 2 + [[], []]
        assert found[0]["judge_verdicts"] == [
            {
                "judge": "judge",
                "template": "pairwise@1",
                "shown_first": "chosen",
                "winner": "unparsable",
                "score": None,
                "words": "It depends.\nIt depends.",
            }
        ]
        assert found[1]["judge_verdicts"][0]["words"].startswith("I'm sorry")

        # What can be seen on the screen, and what is left out where that was asked for.
        command = ["build-pairs", "--input", tmp_path / "in.parquet", "--output", out, "--verify"]
        done = clair(*command, *roles(server, "model", "reviser", "judge"), "--drop", "not_verified")
        assert done.returncode == 0, done.stderr
        assert "2 without a verdict (refusal 1, unparsable 1)" in done.stdout
        assert [row["reason"] for row in dropped(out)] == ["not_verified"] * 2
        assert len(rows(out)) == 2

        sane, before = True, len(server.asked)
        assert clair_apo.build_pairs(**verified)["flags"] == {"not_verified": 2}
        assert len(server.asked) == before, "only on request"
        again = clair_apo.build_pairs(**verified, retry_failed=True)
        assert (again["flags"], again["judge"]["no_verdict"]) == ({}, {})
        assert Counter(item.body["model"] for item in server.asked[before:]) == {"judge": 4}


def test_where_the_judge_picks_the_pair_it_is_a_failure(tmp_path: Path) -> None:
    known = players()
    known.judges["judge"] = lambda *_: "It depends."
    with Loopback(known) as server:
        picking = flags(tmp_path, server, "model", "judge", method="on-policy-judge", verify=True)
        summary = clair_apo.build_pairs(**picking)
    assert (summary["kept"], summary["failures"]) == (0, {"unparsable": 4})
    assert [(row["stage"], row["tries"]) for row in failures(tmp_path / "p.parquet")] == [("judge", 2)] * 4


def test_of_several_revisions_the_judge_goes_on_to_the_next(tmp_path: Path) -> None:
    """It cannot be read about the one that changed the least, and likes the other; and where it can be read
    about none, the least changed is kept."""

    def judge(prompt: str, a: str, b: str) -> str:
        return "It depends." if prompt == PROMPTS[3] or "!!" not in a + b else longer(prompt, a, b)

    known = players()
    known.judges["judge"] = judge
    drawn: Counter[str] = Counter()

    def revising(body: dict[str, Any], n: int) -> Answer:
        if body["model"] != "reviser":
            return Answer(known.reply(body, n))
        drawn[body["messages"][0]["content"]] += 1
        return Answer(marked("Answer to it, and then some" + "!" * drawn[body["messages"][0]["content"]]))

    with Loopback(revising) as server:
        several = flags(tmp_path, server, "model", "reviser", "judge", verify=True, best_of=2)
        summary = clair_apo.build_pairs(**several)
    assert (summary["kept"], summary["flags"].get("not_verified")) == (4, 1)
    found = rows(tmp_path / "p.parquet")
    assert [row["judge_winner"] for row in found] == ["chosen"] * 3 + ["unparsable"]
    assert summary["judge"]["no_verdict"] == {"unparsable": 5}


def test_revisions_that_failed_are_asked_again_on_request(tmp_path: Path) -> None:
    """Of three revisions of an answer one cannot be read; of the last answer none can."""
    sane = False
    drawn: Counter[str] = Counter()

    def behave(body: dict[str, Any], n: int) -> Answer:
        if body["model"] == "student":
            return Answer("An answer.")
        said = body["messages"][0]["content"]
        drawn[said] += len(body["messages"]) == 1
        if not sane and (drawn[said] == 2 or PROMPTS[3] in said):
            return Answer("Nothing that has the form.")
        return Answer(marked("An answer." if sane else "An answer, and a longer one."))

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        several = flags(tmp_path, server, "model", "reviser", best_of=3, concurrency=1)
        first = clair_apo.build_pairs(**several)
        assert (first["kept"], first["failures"]) == (3, {"unparsable": 1})
        sane, before = True, len(server.asked)
        assert clair_apo.build_pairs(**several)["failed"] == 1
        assert len(server.asked) == before, "only on request"
        again = clair_apo.build_pairs(**several, retry_failed=True)
        assert len(server.asked) - before == 3 * 1 + 3, "all that failed, and nothing else"
        assert again["failed"] == 0
        before = len(server.asked)
        clair_apo.build_pairs(**several, retry_failed=True)
        assert len(server.asked) == before, "there is nothing left to ask again"
    assert len(rows(out)) == 3
    assert [row["reason"] for row in dropped(out)] == ["unchanged"]


def test_a_round_that_failed_is_asked_again_on_request(tmp_path: Path) -> None:
    sane = False

    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        if body["model"] == "student":
            return Answer("Own")
        if body["model"] == "judge":
            return Answer(Players().reply(body, n))
        if "Own more" in said and not sane:
            return Answer("Nothing that has the form.")
        return Answer(marked("Own more" if "Own more" not in said else "Own more and more"))

    with Loopback(behave) as server:
        steps = flags(tmp_path, server, "model", "reviser", "judge", rounds=2)
        clair_apo.build_pairs(**steps)
        assert {row["chosen"][0]["content"] for row in rows(tmp_path / "p.parquet")} == {"Own more"}
        sane, before = True, len(server.asked)
        clair_apo.build_pairs(**steps, retry_failed=True)
        assert Counter(item.body["model"] for item in server.asked[before:]) == {"reviser": 4, "judge": 8}
        assert {row["chosen"][0]["content"] for row in rows(tmp_path / "p.parquet")} == {
            "Own more and more"
        }
