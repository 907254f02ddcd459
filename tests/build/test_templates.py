"""Templates: the built-in ones, and files of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from clair_apo.build import templates
from clair_apo.errors import ClairError, UsageError


def test_the_papers_wording_is_the_papers() -> None:
    text = templates.load("paper").ask([{"role": "user", "content": "Q"}], "A")[0]["content"]
    assert text.startswith("You are a teacher and your task is to minimally improve a student's answer.")
    assert "\n\n{task}: Q\n\n{student_solution}: A\n\n-----------------\n\n" in text
    assert text.endswith("identifiers to structure your answer.\n\n")
    assert templates.load("paper@1") == templates.load("paper")


def test_placeholders_in_the_texts_are_text() -> None:
    prompt = [{"role": "user", "content": "{response} {x} %s"}]
    text = templates.load("answer-only").ask(prompt, "{prompt}")[0]["content"]
    assert "Question:\n{response} {x} %s\n" in text
    assert text.endswith("Answer:\n{prompt}")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("---\nsystem: Be kind.\n---\nQ {prompt}\nA {response}\n")
    template = templates.load(str(file))
    assert template.reply == "answer"
    assert template.ask([{"role": "user", "content": "q"}], "a") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Q q\nA a"},
    ]
    digest = template.digest
    file.write_text(file.read_text().replace("Q ", "Question "))
    assert templates.load(str(file)).digest != digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("only {prompt}", "{response}"),
        ("---\nrepy: marked\n---\n{prompt}{response}", "unknown setting 'repy'"),
        ("---\nreply: maybe\n---\n{prompt}{response}", "marked or answer"),
        ("---\n: [\n---\n{prompt}{response}", "no YAML"),
        ("---\nreply: marked\n{prompt}{response}", "do not end with it"),
    ],
)
def test_a_bad_file_is_told_what_is_wrong(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(content)
    with pytest.raises(ClairError, match=words.replace("{", r"\{")):
        templates.load(str(file))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="paper@1"):
        templates.load("papr")
