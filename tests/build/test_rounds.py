"""Iterated CLAIR: revisions of revisions, while the judge finds them better."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import clair_apo
from clair_apo.errors import UsageError
from cli import dropped, rows, write_prompts
from loopback import Answer, Loopback, marked
from players import _PAIR


def content(row: dict[str, Any], side: str) -> str:
    return str(row[side][0]["content"])


def test_a_revision_is_revised_while_it_gets_better(tmp_path: Path) -> None:
    """Each round adds a word. The judge likes up to 3, 1 and 0 words more; the last reviser fails in its
    second round."""
    answers = ["Answer a", "Answer b", "Answer c", "Answer d"]
    likes = {"a": 3, "b": 1, "c": 0, "d": 9}
    source = write_prompts(tmp_path / "in.parquet", prompt=["a?", "b?", "c?", "d?"], response=answers)

    def behave(body: dict[str, Any], _: int) -> Answer:
        said = body["messages"][0]["content"]
        if body["model"] == "reviser":
            student = re.search(r"\{student_solution\}: (.*?)\n\n-----", said, re.S)
            assert student
            return Answer("Nothing." if student[1] == "Answer d more" else marked(student[1] + " more"))
        pair = _PAIR.search(said)
        assert pair
        worth = [min(text.count("more"), likes[pair[1][0]]) for text in pair.groups()[1:]]
        return Answer("[[C]]" if worth[0] == worth[1] else "[[A]]" if worth[0] > worth[1] else "[[B]]")

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        flags: dict[str, Any] = {
            "input": source,
            "output": out,
            "reviser": "reviser",
            "reviser_url": server.url,
            "rounds": 5,
            "judge": "judge",
            "judge_url": server.url,
        }
        told = clair_apo.build_pairs(**flags, dry_run=True)
        assert server.asked == []
        ends = clair_apo.build_pairs(**flags)
        assert told["calls"]["low"] <= len(server.asked) <= told["calls"]["high"]
        found = rows(out)
        # Revisions: four with the one that was no better, two, one, and one with two replies more.
        assert len(server.asked) == (4 + 2 + 1 + 3) + 2 * (4 + 2 + 1 + 1)
        assert [content(row, "rejected") for row in found] == answers
        assert [content(row, "chosen").count("more") for row in found] == [3, 1, 1, 1]
        assert [row["judge_winner"] for row in found] == [None, "chosen", "tie", "chosen"]
        assert [[r["judge_winner"] for r in row["rounds"]] for row in found] == [
            ["chosen", "chosen", "chosen", "tie"],
            ["chosen", "tie"],
            ["tie"],
            ["chosen"],
        ]
        assert [r["content"].count("more") for r in found[0]["rounds"]] == [1, 2, 3, 4]
        assert ["not_verified" in row["flags"] for row in found] == [False, False, True, False]
        assert (ends["rows_in"], ends["kept"]) == (4, 4)

        calls = len(server.asked)
        steps = clair_apo.build_pairs(**flags, round_pairs="neighbours")
        assert len(server.asked) == calls
        assert (steps["rows_in"], steps["kept"]) == (4, 4)
        pairs = rows(out)
        assert [
            (content(r, "rejected").count("more"), content(r, "chosen").count("more")) for r in pairs
        ] == [
            (0, 1),
            (1, 2),
            (2, 3),
            (0, 1),
            (0, 1),
            (0, 1),
        ]
        first = pairs[0]["id"]
        assert [row["id"] for row in pairs[:3]] == [first, f"{first}.2", f"{first}.3"]
        assert [row["usage"] is None for row in pairs[:3]] == [False, True, True]

        verified = clair_apo.build_pairs(**flags, verify=True, drop="not_verified")
        assert len(server.asked) == calls + 2  # the first against the last, which nobody had looked at
        assert (verified["kept"], verified["filtered"]) == (3, 1)
        assert dropped(out)[0]["reason"] == "not_verified"
        with pytest.raises(UsageError, match="rounds: 5 before, null now"):
            clair_apo.build_pairs(**{**flags, "rounds": 1, "verify": True})


def test_rounds_need_a_judge(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a?"], response=["A."])
    with pytest.raises(UsageError, match="--rounds needs a judge"):
        clair_apo.build_pairs(input=source, output=tmp_path / "p.parquet", reviser="r", rounds=2)
