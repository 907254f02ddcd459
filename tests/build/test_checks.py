"""Flags: each on what it is for, and not on what only looks like it."""

from __future__ import annotations

import pytest

from clair_apo.build import templates
from clair_apo.build.checks import (
    Band,
    leaks_frame,
    looks_truncated,
    main_script,
    parse_flags,
    switches_script,
)
from clair_apo.build.markdown import ends_in_code

PAPER = templates.load("paper")


@pytest.mark.parametrize(
    "revision",
    [
        "The student's answer was wrong: it is Paris.",
        "In this revision the capital is Paris.",
        "Here is the corrected answer: Paris.",
        "Sure! Here's an improved version:\n\nParis.",
        "Paris. {corrected_student_solution}",
        "The corrected text: Paris.",
        "**\nParis.",
    ],
)
def test_frames_that_leak(revision: str) -> None:
    assert leaks_frame("Paris is it.", revision, "What is the capital?", PAPER)


def test_an_echo_of_the_instruction_leaks() -> None:
    plain = templates.load("answer-only")
    last = plain.text.splitlines()[0]
    assert leaks_frame("Paris.", f"Paris.\n\n{last}", "Capital?", plain)
    assert not leaks_frame("Paris.", "Paris. Answer: yes.", "Capital?", plain)


@pytest.mark.parametrize(
    ("original", "revision", "prompt"),
    [
        ("A student pays less.", "Students pay less.", "Who pays less?"),
        ("Ask there.", "Ask the teacher there.", "What does a teacher do?"),
        ("Here is the revised plan: go.", "Here is the revised plan: stay.", "Revise the plan."),
        ("Paris.", "Here is the list of capitals: Paris.", "Capitals?"),
        ("**Paris** it is.", "**Paris** it is, on the Seine.", "Capitals?"),
    ],
)
def test_words_that_belong_there(original: str, revision: str, prompt: str) -> None:
    assert not leaks_frame(original, revision, prompt, PAPER)


@pytest.mark.parametrize(
    ("revision", "cut"),
    [
        ("It lies on the river and was founded by the", True),
        ("It lies on the river, which is why it was, ", True),
        ("It lies on the river.", False),
        ("It lies on the river:\n\n- a bank of it to the left and", False),
        ("| a | b |\n| c | d of the long table", False),
        ("```\nx = 1 and so on with the code\n```", False),
        ("Best regards,\nThe Team", False),
        ("それは川のそばにあります。", False),
        ('He said: "It is so."', False),
    ],
)
def test_looking_truncated(revision: str, cut: bool) -> None:
    assert looks_truncated("It lies there.", revision) is cut


def test_an_original_without_an_end_excuses_the_revision() -> None:
    assert not looks_truncated("one, two and three", "one, two, three and four more of them all")


def test_scripts() -> None:
    english, russian = "A sentence of letters", "Предложение из букв"
    japanese, chinese = "これは日本語の文章です。漢字もある", "这是一个中文句子,没有别的"
    assert switches_script(english, russian)
    assert switches_script(chinese, english)
    assert not switches_script(english, english + " Москва")
    assert not switches_script("12 + 30 = 42", english)
    assert main_script(japanese) == "KANA"
    assert main_script(chinese) == "CJK"
    assert main_script("1 2 3") is None


def test_fences() -> None:
    assert ends_in_code("text\n```python\nx = 1")
    assert not ends_in_code("```\n~~~\n```\n")
    assert not ends_in_code("````\n```\n````")
    assert ends_in_code("~~~\n```")


def test_bands() -> None:
    band = Band(0.1, 0.5)
    assert 0.1 in band
    assert 0.5 in band
    assert 0.51 not in band
    assert band.distance(0.6) == pytest.approx(0.1)
    assert band.distance(0.05) == pytest.approx(0.05)
    assert band.distance(0.3) == 0


def test_flag_names() -> None:
    assert parse_flags("leaked_frame, code_fence") == {"leaked_frame", "code_fence"}
    with pytest.raises(ValueError, match="truncated_look"):
        parse_flags("leaked")
