"""Revision templates: how a reviser is asked, and how its reply is meant to be read.

Those of judges are in `judge_templates`, and share how their files are read.

A template is a text file with `{prompt}` and `{response}` where the question and the answer go; every
other brace stands for itself. Lines between two `---` at the top may set `reply`, the markers, `system`
and `description`. The ones that come along are versioned: a change of wording is a new version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeVar

import yaml

from clair_apo.errors import ClairError, UsageError
from clair_apo.llm.chat import Message

MARKED, ANSWER, EDITS = "marked", "answer", "edits"
_FIELDS = ("description", "reply", "answer_marker", "reasoning_marker", "system", "source")


@dataclass(frozen=True, slots=True)
class Template:
    """One way to ask for a revision.

    `reply` says what comes back: `marked`, with the answer behind a line that names `answer_marker`,
    `answer`, where the whole reply is the revision, or `edits`, search-and-replace edits of the answer.
    """

    name: str
    text: str
    description: str = ""
    reply: str = MARKED
    answer_marker: str = "corrected_student_solution"
    reasoning_marker: str = "teacher_reasoning"
    system: str | None = None
    source: str | None = None

    @property
    def digest(self) -> str:
        """What tells two wordings under one name apart."""
        parts = (
            self.text,
            self.reply,
            self.answer_marker,
            self.reasoning_marker,
            self.system or "",
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def ask(self, prompt: Sequence[Message], response: str) -> list[Message]:
        """The messages that ask for a revision of `response`, the answer to `prompt`."""
        text = fill(self.text, {"prompt": as_text(prompt), "response": response})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def ask_again(self, asked: list[Message], reply: str) -> list[Message]:
        """The one stricter request after a reply that could not be read."""
        if self.reply == ANSWER:
            words = "Write the answer again, whole, and nothing else: no remark before or after it."
        else:
            words = (
                f"That reply could not be read. Write it again in exactly this form: a line with "
                f"only {{{self.reasoning_marker}}}, then your reasoning; then a line with only "
                f"{{{self.answer_marker}}}, then the whole corrected answer and nothing after it."
            )
        return [*asked, {"role": "assistant", "content": reply}, {"role": "user", "content": words}]

    def ask_nearer(self, asked: list[Message], reply: str, *, too_much: bool) -> list[Message]:
        """The one request after a revision that changed too much, or hardly anything."""
        if too_much:
            words = (
                "You rewrote the answer instead of revising it. Start from the original answer "
                "again, copy every sentence of it that is right word for word, and change only "
                "what is wrong or unclear. Reply in the same form as before."
            )
        else:
            words = (
                "That is almost the original answer. Look at it again and mend what is wrong, "
                "missing or unclear in it, leaving the rest as it is. Reply in the same form as "
                "before."
            )
        return [*asked, {"role": "assistant", "content": reply}, {"role": "user", "content": words}]


def as_text(prompt: Sequence[Message]) -> str:
    """A conversation as one text: a single user turn as it is, anything longer with its speakers."""
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


@cache
def built_in() -> dict[str, Template]:
    """The templates that come with the package, by name and version."""
    return {name: _parse(name, content) for name, content in packaged("templates").items()}


def load(name: str) -> Template:
    """A template by its name (`paper`, `paper@1`) or by its file.

    Raises UsageError for an unknown name and ClairError for a file that is no template.
    """
    return find(name, built_in(), _parse, "--template")


class Named(Protocol):
    @property
    def name(self) -> str: ...


AnyTemplate = TypeVar("AnyTemplate", bound=Named)


def packaged(folder: str) -> dict[str, str]:
    """The files of a folder of templates that come with the package, by name and version."""
    where = resources.files("clair_apo.build")
    for part in folder.split("/"):
        where = where / part
    files = sorted((item for item in where.iterdir() if item.is_file()), key=lambda item: item.name)
    return {item.name.removesuffix(".txt"): item.read_text("utf-8") for item in files}


def find(
    name: str, known: Mapping[str, AnyTemplate], parse: Callable[[str, str], AnyTemplate], flag: str
) -> AnyTemplate:
    """One of `known` by its name, with or without a version (then the newest), or what `parse` makes of a
    file's name and content.

    Raises UsageError for an unknown name and ClairError for a file that cannot be read.
    """
    if name in known:
        return known[name]
    versions = [key for key in known if key.partition("@")[0] == name]
    if versions:
        return known[max(versions, key=lambda key: int(key.partition("@")[2]))]
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"{flag} {name}: no such template, and no such file. Known are "
            f"{', '.join(known)} (`clair-apo templates` shows them)."
        )
    try:
        return parse(str(path), path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ClairError(f"{path}: cannot be read: {error}") from error


def read_head(name: str, content: str, fields: Sequence[str]) -> tuple[dict[str, str], str]:
    """The settings at the top of a template (`fields` are known), and its text. Raises ClairError."""
    content = content.removesuffix("\n")  # the one that ends the file
    head: dict[str, str] = {}
    text = content
    if content.startswith("---\n"):
        top, found, text = content[4:].partition("\n---\n")
        if not found:
            raise ClairError(f"{name}: the lines at the top begin with --- but do not end with it")
        try:
            head = yaml.safe_load(top) or {}
        except yaml.YAMLError as error:
            raise ClairError(f"{name}: the lines between --- are no YAML: {error}") from error
    if not isinstance(head, dict) or not all(isinstance(value, str) for value in head.values()):
        raise ClairError(f"{name}: the lines between --- must be `name: text`")
    for key in head:
        if key not in fields:
            raise ClairError(f"{name}: unknown setting {key!r}; known are {', '.join(fields)}")
    return head, text


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with `{name}` replaced by its value; in one pass, so that a placeholder inside a value is not
    filled in turn, and every other brace stands for itself."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda place: values[place[1]], text)


def _parse(name: str, content: str) -> Template:
    head, text = read_head(name, content, _FIELDS)
    missing = [place for place in ("prompt", "response") if "{" + place + "}" not in text]
    if missing:
        raise ClairError(
            f"{name}: the text has no {{{missing[0]}}}; the question and the answer go "
            "where {prompt} and {response} stand"
        )
    template = Template(name, text, **head)
    reply = head.get("reply") or (MARKED if template.answer_marker in text else ANSWER)
    if reply not in (MARKED, ANSWER, EDITS):
        raise ClairError(f"{name}: reply is {reply!r}; it must be {MARKED} or {ANSWER} or {EDITS}")
    return Template(name, text, **{**head, "reply": reply})
