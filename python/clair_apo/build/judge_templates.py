"""Templates of judges, and how their verdicts are read.

A template is a text file as those of revisions are. The *pairwise* form has `{prompt}`, `{answer_a}` and
`{answer_b}` and asks for `[[A]]`, `[[B]]` or, for a tie, `[[C]]`; the *absolute* form has `{prompt}` and
`{response}` and asks for a whole number from `[[1]]` to `[[10]]`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from clair_apo.build.parser import Unparsable
from clair_apo.build.templates import as_text, fill, find, packaged, read_head
from clair_apo.build.thinking import strip_thinking
from clair_apo.errors import ClairError
from clair_apo.llm.chat import Message

PAIRWISE, ABSOLUTE = "pairwise", "absolute"
_PLACES = {PAIRWISE: ("prompt", "answer_a", "answer_b"), ABSOLUTE: ("prompt", "response")}
_FIELDS = ("description", "form", "system", "source")
_MARKS = {PAIRWISE: re.compile(r"\[\[([ABC])\]\]"), ABSOLUTE: re.compile(r"\[\[(10|[1-9])\]\]")}
_ANY_MARK = re.compile(r"\[\[[^\[\]\n]*\]\]")


@dataclass(frozen=True, slots=True)
class JudgeTemplate:
    """One way to ask for a verdict; `form` is PAIRWISE or ABSOLUTE."""

    name: str
    text: str
    form: str
    description: str = ""
    system: str | None = None
    source: str | None = None

    @property
    def digest(self) -> str:
        """What tells two wordings under one name apart."""
        parts = (self.text, self.form, self.system or "")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def ask(self, prompt: Sequence[Message], *answers: str) -> list[Message]:
        """The messages that ask about two answers, A and B, or in the absolute form about one."""
        text = fill(self.text, dict(zip(_PLACES[self.form], (as_text(prompt), *answers), strict=True)))
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def ask_again(self, asked: list[Message], reply: str) -> list[Message]:
        """The one stricter request after a reply without a readable verdict."""
        form = "[[A]], [[B]] or [[C]]" if self.form == PAIRWISE else "a whole number from [[1]] to [[10]]"
        words = (
            f"No verdict can be read in that reply. Write its last line again, and nothing else: {form}."
        )
        return [*asked, {"role": "assistant", "content": reply}, {"role": "user", "content": words}]


def read_verdict(reply: str, form: str, known: str = "") -> tuple[str, str]:
    """The mark of a reply (`A`, `B`, `C`, or `1` to `10`) and the judge's words, without its thinking.

    The last line that holds anything must hold one mark of the form and no other; what stands in earlier
    lines decides nothing. `known` are the texts that the judge was shown: where they hold a mark, a line
    that says anything besides may be about theirs, and is no verdict.

    Raises Unparsable.
    """
    words = strip_thinking(reply, known).strip()
    last = words.rpartition("\n")[2]
    marks = set(_ANY_MARK.findall(last))
    found = _MARKS[form].search(last)
    if found is None or len(marks) != 1:
        raise Unparsable(
            "its last line holds no verdict" if not marks else f"its last line is {last[:80]!r}"
        )
    if _MARKS[form].search(known) and re.search(r"\w", _ANY_MARK.sub("", last)):
        raise Unparsable("its last line may speak of a mark in the texts that it was shown")
    return found[1], words


@cache
def built_in() -> dict[str, JudgeTemplate]:
    """The templates that come with the package, by name and version."""
    return {name: _parse(name, content) for name, content in packaged("templates/judge").items()}


def load(name: str) -> JudgeTemplate:
    """A template by its name (`pairwise`, `pairwise@1`) or by its file.

    Raises UsageError for an unknown name and ClairError for a file that is no such template.
    """
    return find(name, built_in(), _parse, "--judge-template")


def _parse(name: str, content: str) -> JudgeTemplate:
    head, text = read_head(name, content, _FIELDS)
    form = head.pop("form", None) or (PAIRWISE if "{answer_a}" in text else ABSOLUTE)
    if form not in _PLACES:
        raise ClairError(f"{name}: form is {form!r}; it must be {PAIRWISE} or {ABSOLUTE}")
    for place in _PLACES[form]:
        if "{" + place + "}" not in text:
            wanted = ", ".join(f"{{{each}}}" for each in _PLACES[form])
            raise ClairError(f"{name}: the text has no {{{place}}}; the {form} form needs {wanted}")
    return JudgeTemplate(name, text, form, **head)
