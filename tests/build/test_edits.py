"""Revisions as edits, and several revisions of one answer: only what is sure is applied."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clair_apo.build.edits import apply, parse_edits, takes_edits
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
        original = "".join(dice.choices("(.;, \n\u00bf\U0001f600", k=dice.randint(10, 60)))
        cuts = sorted(dice.sample(range(len(original) + 1), 4))
        spans = [(cuts[0], cuts[1]), (cuts[2], cuts[3])]
        searches = [original[begin:end] for begin, end in spans]
        unique = all(sum(original.startswith(s, i) for i in range(len(original))) == 1 for s in searches)
        edges = any(not line.strip() for s in searches for line in (s.split("\n")[0], s.split("\n")[-1]))
        if not unique or edges:
            continue
        replaced = ["".join(dice.choices("xyz", k=dice.randint(1, 5))) for _ in spans]
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
        both = row["rejected"] + row["chosen"]
        if row["chosen"] == row["rejected"] or "\n===" in both or "<<<<" in both:
            continue
        parsed = parse_edits(as_edits(row["rejected"], row["chosen"]), row["rejected"], row["prompt"])
        # Empty lines that an edit leaves at the ends of an answer are no part of it, as in the full form.
        whole = row["rejected"] == row["rejected"].strip("\r\n")
        assert parsed.revision == (row["chosen"].strip("\r\n") if whole else row["chosen"])
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
        ("I cannot provide sources, but:\n" + block("One", "1"), ORIGINAL.replace("One", "1")),
        ("Fixed `One`.\n```diff\n" + block("One is one.", "1.\n"), "1.\n" + ORIGINAL[11:]),
        (block("One is one.", "1.").replace("\n", "\r\n"), "1." + ORIGINAL[11:]),
        (block("Two is two.\nLast line.", "").replace("=\n\n", "=\n"), ORIGINAL[:23]),
        (
            block("One", "Two").replace("\n", "\r\n").replace("One\r", "One").replace("Two\r", "Two"),
            ORIGINAL.replace("One", "Two"),
        ),
    ],
)
def test_edits_that_apply(reply: str, revision: str) -> None:
    assert parse_edits(reply, ORIGINAL).revision == revision


# A second block that may be meant as one, and may not be left out in silence.
LAST = block("Last line.", "x")
ALMOST = [
    "2. And:\n" + LAST.replace("\n", "\n   ").replace("<<<", "   <<<", 1),
    LAST.replace("\n", "\n> ").replace("<<<", "> <<<", 1),
    LAST.lower().replace("=======", "===="),
    "<<<<<<< SEAR",
]


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
        block("ne is one.", "x"),  # a part of a word
        block("Two is tw", "x"),
        block("One is one.\n", "x"),  # the next line is not empty, and would move up
        block("\nLast line.", "x"),
        *(block("One", "x") + "\n" + almost for almost in ALMOST),
    ],
)
def test_edits_that_are_not_sure_apply_nothing(reply: str) -> None:
    with pytest.raises(Unparsable):
        parse_edits(reply, ORIGINAL)


@pytest.mark.parametrize(
    ("original", "search", "replacement"),
    [
        ("def f(x):\n    return x\n", "return x", "y = x\nreturn y"),  # the second line has no indentation
        ("f(x)\n    g(y)", "f(x)\n  ", "h(z)"),
        ("Two cafe\u0301s, one cafe\u0301.", "one cafe", "one tea"),
        ("the \U0001f468\u200d\U0001f467 family", "the \U0001f468", "a \U0001f468"),
        ("ok \U0001f44d\U0001f3fd", "ok \U0001f44d", "fine \U0001f44d"),
    ],
)
def test_a_search_that_cuts_more_than_itself_is_not_sure(
    original: str, search: str, replacement: str
) -> None:
    assert original.count(search) == 1
    with pytest.raises(Unparsable):
        parse_edits(block(search, replacement), original)


@pytest.mark.parametrize(
    ("original", "reply", "revision"),
    [
        (
            "\u6211\u662f\u5b66\u751f\u3002",
            block("\u662f", "\u4e0d\u662f"),
            "\u6211\u4e0d\u662f\u5b66\u751f\u3002",
        ),
        ("a.\r\n\r\nb.\r\nc.", block("a.\n\nb.", "1.\n2."), "1.\r\n2.\r\nc."),
        ("a.\r\n\r\nb.", block("a.\r", "1.\r\n2.\r"), "1.\r\n2.\r\n\r\nb."),
        ("a.\r\n\r\nb.", "<<<<<<< SEARCH\nb.\n=======\n>>>>>>> REPLACE", "a."),
        ("a.\n\nb.", "<<<<<<< SEARCH\na.\n=======\n>>>>>>> REPLACE", "b."),
        ("f(x):\n    g\n    h\n", block("    g", "    i\n    j"), "f(x):\n    i\n    j\n    h\n"),
        ("    g = 1", block("g = 1", "g = 2"), "    g = 2"),
    ],
)
def test_ends_of_lines_and_words_of_every_kind(original: str, reply: str, revision: str) -> None:
    assert parse_edits(reply, original).revision == revision


def test_what_is_no_edit() -> None:
    with pytest.raises(Refused):
        parse_edits("I'm sorry, but I can't help with that.", ORIGINAL)


def test_what_does_not_apply_is_asked_for_in_full(tmp_path: Path) -> None:
    answers = ["The sky is blew.", "Twice and twice.", "Never seen.", "Heading\n=======\nText."]
    assert [takes_edits(answer) for answer in answers] == [True, True, True, False]
    source = write_prompts(tmp_path / "in.parquet", prompt=["a?", "b?", "c?", "d?"], response=answers)

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
        judge = ["--verify", "--judge", "j", "--judge-url", server.url]
        told = [build(source, out, *flags, *more, "--dry-run")["calls"]["high"] for more in ([], judge)]
        assert told[1] - told[0] >= 2 * len(answers), "each row comes to its judge"
        summary = build(source, out, *flags)
        assert len(server.asked) == summary["calls"] == 6
        plain = build(source, out, *flags[:-2], status=2)
        build(source, out, *flags)
        assert len(server.asked) == 6
    assert "edits-template: edits@1" in plain["stderr"]
    assert [row["chosen"][0]["content"] for row in rows(out)] == [
        "The sky is blue.",
        *["In full."] * 3,
    ]
    assert [row["template"] for row in rows(out)] == ["edits@1", *["paper@1"] * 3]
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
