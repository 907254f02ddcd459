"""Revisions as edits, and several revisions of one answer: only what is sure is applied."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clair_apo.build.edits import apply, parse_edits
from clair_apo.build.parser import Refused, Unparsable
from cli import build, rows, write_prompts
from loopback import Answer, Loopback, marked
from players import as_edits


def block(search: str, replacement: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replacement}\n>>>>>>> REPLACE"


def test_random_edits_are_those_of_plain_slicing() -> None:
    """Spans of text that stands there once, replaced from the end, against `apply`."""
    dice = random.Random(3)
    done = 0
    while done < 500:
        original = "".join(dice.choices("abcd \n\u00e9\U0001f600", k=dice.randint(10, 60)))
        cuts = sorted(dice.sample(range(len(original) + 1), 4))
        spans = [(cuts[0], cuts[1]), (cuts[2], cuts[3])]
        searches = [original[begin:end] for begin, end in spans]
        unique = all(sum(original.startswith(s, i) for i in range(len(original))) == 1 for s in searches)
        if not unique or any(not s.strip() for s in searches):
            continue
        replaced = ["".join(dice.choices("xyz\n", k=dice.randint(1, 5))) for _ in spans]
        plain = original
        for (begin, end), new in reversed(list(zip(spans, replaced, strict=True))):
            plain = plain[:begin] + new + plain[end:]
        edits: list[tuple[str, str | None]] = list(zip(searches, replaced, strict=True))
        dice.shuffle(edits)
        assert apply(original, edits) == plain
        done += 1


def test_real_revisions_come_back_exactly(shared_data: Path) -> None:
    applied = 0
    for row in pq.read_table(shared_data / "pairs_revision.parquet").to_pylist():
        if row["chosen"] == row["rejected"] or "\n===" in row["rejected"] + row["chosen"]:
            continue
        parsed = parse_edits(as_edits(row["rejected"], row["chosen"]), row["rejected"], row["prompt"])
        assert parsed.revision == row["chosen"]
        assert parsed.rationale == "It can be clearer."
        applied += 1
    assert applied > 150


ORIGINAL = "One is one.\nTwo is two.\nTwo is two.\nLast line."


@pytest.mark.parametrize(
    ("reply", "revision"),
    [
        (block("One is one.", "One is 1."), ORIGINAL.replace("One is one.", "One is 1.")),
        (
            block("Last line.", "A.") + "\n\nNext:\n\n" + block("One is one.", "B."),
            "B.\nTwo is two.\nTwo is two.\nA.",
        ),
        ("```\n" + block("One is", "1 is") + "\n```", ORIGINAL.replace("One is", "1 is")),
        (
            "<think>" + block("One", "x") + "</think>" + block("Last", "The last"),
            ORIGINAL.replace("Last", "The last"),
        ),
        ("<<<<<<< SEARCH\nOne is one.\n=======\n>>>>>>> REPLACE", ORIGINAL.partition("\n")[2]),
        (block("One", "$1 \\1 {response}"), ORIGINAL.replace("One", "$1 \\1 {response}")),
        (
            block("One", "Two").replace("\n", "\r\n").replace("One\r", "One").replace("Two\r", "Two"),
            ORIGINAL.replace("One", "Two"),
        ),
    ],
)
def test_edits_that_apply(reply: str, revision: str) -> None:
    assert parse_edits(reply, ORIGINAL).revision == revision


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "One is 1.",
        block("Three", "3"),
        block("Two is two.", "2"),
        block("is", "was"),
        block("", "x"),
        block("  ", "x"),
        block("One is one.", "a") + "\n" + block("is one.\nTwo", "b"),
        block("One is one.", "a") + "\n" + block("One is one.", "b"),
        "<<<<<<< SEARCH\nOne\n=======\nx",
        "<<<<<<< SEARCH\nOne\n>>>>>>> REPLACE",
        "<<<<<<< SEARCH\nOne\n<<<<<<< SEARCH\nOne\n=======\nx\n>>>>>>> REPLACE",
        block("One", "x\n======="),
        block("One", "x") + "\n>>>>>>> REPLACE",
        block(ORIGINAL, ""),
        block("one is one.", "x"),
    ],
)
def test_edits_that_are_not_sure_apply_nothing(reply: str) -> None:
    with pytest.raises(Unparsable):
        parse_edits(reply, ORIGINAL)


def test_an_answer_that_looks_like_a_block_is_left_alone() -> None:
    with pytest.raises(Unparsable, match="markers"):
        parse_edits(block("Heading", "Title"), "Heading\n=======\nText.")
    with pytest.raises(Refused):
        parse_edits("I'm sorry, but I can't help with that.", ORIGINAL)


def test_what_does_not_apply_is_asked_for_in_full(tmp_path: Path) -> None:
    answers = ["The sky is blew.", "Twice and twice.", "Never seen."]
    source = write_prompts(tmp_path / "in.parquet", prompt=["a?", "b?", "c?"], response=answers)

    def behave(body: dict[str, Any], _: int) -> Answer:
        said = body["messages"][0]["content"]
        if "{student_solution}" in said:
            return Answer(marked("In full."))
        if "sky" in said:
            return Answer("A slip.\n" + block("blew", "blue"))
        return Answer(block("wice", "hrice") if "Twice" in said else "I see nothing.")

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        flags = ["--reviser", "m", "--reviser-url", server.url, "--reply-format", "edits"]
        summary = build(source, out, *flags)
        assert len(server.asked) == summary["calls"] == 5
        plain = build(source, out, *flags[:-2], status=2)
        build(source, out, *flags)
        assert len(server.asked) == 5
    assert "edits-template: edits@1" in plain["stderr"]
    assert [row["chosen"][0]["content"] for row in rows(out)] == [
        "The sky is blue.",
        "In full.",
        "In full.",
    ]
    assert [row["template"] for row in rows(out)] == ["edits@1", "paper@1", "paper@1"]
    assert rows(out)[0]["rationale"] == "A slip."


def test_of_several_revisions_the_least_changed_that_is_verified(tmp_path: Path) -> None:
    answer = "The quick brown fox jumps over the lazy dog."
    nearest, near, far = (answer.replace("dog", "log"), answer.replace("dog", "old cat"), "Something else.")
    drawn = [far, nearest, answer, near]
    source = write_prompts(tmp_path / "in.parquet", prompt=["a"], response=[answer])

    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        if body["model"] == "m":
            return Answer(marked(drawn[n]))
        first = said.index(answer) < max(said.find(text) for text in drawn if text != answer)
        good = near in said  # the judge finds the nearest no better
        return Answer("[[C]]" if not good else "[[B]]" if first else "[[A]]")

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        flags = ["--reviser", "m", "--reviser-url", server.url, "--best-of", 4]
        plain = build(source, out, *flags)
        assert (plain["calls"], plain["kept"]) == (4, 1)
        assert rows(out)[0]["chosen"][0]["content"] == nearest
        judge = ["--verify", "--judge", "j", "--judge-url", server.url]
        told = build(source, out, *flags, *judge, "--dry-run")
        verified = build(source, out, *flags, *judge)
        assert told["calls"]["low"] <= verified["judge"]["calls"] == 4 <= told["calls"]["high"]
        (row,) = rows(out)
        assert (row["chosen"][0]["content"], row["judge_winner"], row["flags"]) == (near, "chosen", [])
