"""A loopback server that plays every role of a run: model, reviser, stronger model, judges."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loopback import Answer, Loopback, marked

# As `clair_apo.build.templates.judge` lays a request out.
_PAIR = re.compile(
    r"The request:\n(.*)\n\n===== Answer A =====\n(.*)\n===== End of answer A =====\n\n"
    r"===== Answer B =====\n(.*)\n===== End of answer B =====\n\nGive your reasons",
    re.S,
)
_ONE = re.compile(
    r"The request:\n(.*)\n\n===== Answer =====\n(.*)\n===== End of the answer =====\n\nGive your reasons",
    re.S,
)

Judge = Callable[[str, str, str], str]


def longer(_: str, a: str, b: str) -> str:
    """A judge that looks at nothing but length, and sees the same in any order."""
    return "[[C]]" if len(a) == len(b) else f"The longer one.\n\n[[{'A' if len(a) > len(b) else 'B'}]]"


def always_first(_: str, a: str, b: str) -> str:
    return "I like how it begins.\n[[A]]"


@dataclass
class Players:
    """Answers by role, which is the name of the model that is asked. `samples` are the model's answers in
    the order in which they are asked for; `revisions` and `fresh` are the reviser's and the stronger one's.
    """

    samples: dict[str, list[str]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    judges: dict[str, Judge] = field(default_factory=lambda: {"judge": longer})
    score: Callable[[str, str], str] = lambda prompt, answer: f"[[{1 + len(answer) % 10}]]"
    delay: float = 0.0

    def __call__(self, body: dict[str, Any], n: int) -> Answer:
        return Answer(self.reply(body, n), delay=self.delay)

    def reply(self, body: dict[str, Any], n: int) -> str:
        said, model = body["messages"][0]["content"], body["model"]
        if model == "student":
            return self.samples[said][n % len(self.samples[said])]
        if model == "stronger":
            return self.fresh[said]
        if model == "reviser":
            student = re.search(r"\{task\}: (.*)\n\n\{student_solution\}: ", said, re.S)
            assert student
            return marked(self.revisions[student[1]])
        if two := _PAIR.search(said):
            return self.judges[model](*two.groups())
        one = _ONE.search(said)
        assert one, said
        return self.score(*one.groups())


def real_players(folder: Path) -> tuple[Players, pa.Table]:
    """Players with the real texts of the shared data, and its input: prompts with answers of other models.

    The model to be aligned is played by the one whose answers were revised (gpt-4-turbo), its second sample
    by SimPO's, and the fresh answers are Llama-3-8B's, against which it is measured in that data.
    """
    revised = pq.read_table(folder / "pairs_revision.parquet").to_pylist()
    stronger = pq.read_table(folder / "pairs_stronger_preferred.parquet").to_pylist()
    rated = pq.read_table(folder / "answers_rated.parquet")
    players = Players()
    for revision, fresh, row in zip(revised, stronger, rated.to_pylist(), strict=True):
        prompt = row["prompt"]
        assert prompt == revision["prompt"] == fresh["prompt"]
        players.samples[prompt] = [revision["rejected"], row["second_response"]]
        players.revisions[prompt] = revision["chosen"]
        players.fresh[prompt] = fresh["rejected"]
    return players, rated.select(["prompt", "completions"])


def roles(server: Loopback, *wanted: str) -> list[object]:
    """The flags that name the players of these roles: model, reviser, stronger, judge."""
    names = {"model": "student", "reviser": "reviser", "stronger": "stronger", "judge": "judge"}
    return [item for role in wanted for item in (f"--{role}", names[role], f"--{role}-url", server.url)]


def as_edits(original: str, revision: str) -> str:
    """The reply of a reviser that turns one text into the other by edits of lines, each with as many lines
    around it as make what it searches for unique."""
    a, b = original.split("\n"), revision.split("\n")
    hunks: list[tuple[int, int, int, int]] = []
    for tag, *place in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        i1, i2, j1, j2 = place
        while i1 == i2 or not _once("\n".join(a[i1:i2]), original):
            if i1 == 0 and i2 == len(a):
                break
            if i1 > 0:
                i1, j1 = i1 - 1, j1 - 1
            elif i2 < len(a):
                i2, j2 = i2 + 1, j2 + 1
        if hunks and i1 <= hunks[-1][1]:  # it grew into the one before
            i1, j1 = hunks[-1][0], hunks[-1][2]
            hunks.pop()
        hunks.append((i1, i2, j1, j2))
    blocks = (
        ["<<<<<<< SEARCH", *a[i1:i2], "=======", *b[j1:j2], ">>>>>>> REPLACE"] for i1, i2, j1, j2 in hunks
    )
    return "It can be clearer.\n\n" + "\n\n".join("\n".join(block) for block in blocks)


def _once(part: str, whole: str) -> bool:
    at = whole.find(part)
    return bool(part.strip()) and at >= 0 and whole.find(part, at + 1) < 0
