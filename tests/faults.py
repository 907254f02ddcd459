"""A server that misbehaves by a plan: for each row which faults it meets, drawn from a seed.

A row meets up to two faults of the way first, one a try, and gets past them; then comes what it ends
with: a whole reply, one that takes another request or some patience, or a fault that stays.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any

from loopback import Answer, error, marked

# The cap that the first request must come with; only a larger one lets a "truncated once" be whole.
MAX_TOKENS = 400
HANG_SECONDS = 30.0
DRAFT = "This draft is not the answer."


def reply(answer: str) -> Answer:
    """The whole reply about `answer`."""
    return Answer(marked(revision(answer)))


def revision(answer: str) -> str:
    return answer.upper()


def _wait(**headers: str) -> Callable[[str], Answer]:
    return lambda _: error(429, "slow down", **headers)


def _date(_: str) -> Answer:
    return error(429, "slow down", retry_after=formatdate(time.time() + 1, usegmt=True))


def _always(answer: Answer) -> Callable[[str], Answer]:
    return lambda _: answer


def _part(text: str, share: float) -> int:
    return int(share * len(reply(text).text({"model": "m"})))


# What another try gets past: the kind that a row fails with where it stays, and the answer about a text.
WAY: dict[str, tuple[str, Callable[[str], Answer]]] = {
    "429 retry-after-ms": ("rate_limited", _wait(retry_after_ms="60")),
    "429 seconds": ("rate_limited", _wait(retry_after="1")),
    "429 fraction": ("rate_limited", _wait(retry_after="0.05")),
    "429 date": ("rate_limited", _date),
    "429 bare": ("rate_limited", _wait()),
    "429 x-ratelimit": (
        "rate_limited",
        _wait(
            x_ratelimit_limit_requests="1000",
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_requests="90ms",
        ),
    ),
    "500": ("http_5xx", _always(error(500, "it broke"))),
    "502 html": ("http_5xx", _always(Answer(status=502, body="<html>Bad gateway</html>"))),
    "503": ("http_5xx", _always(error(503, "busy"))),
    "503 retry-after": ("http_5xx", _always(error(503, "busy", retry_after="0.1"))),
    "hang": ("timeout", _always(Answer(delay=HANG_SECONDS))),
    "reset at once": ("connection", _always(Answer(reset=0))),
    "reset in the body": ("connection", lambda text: replace(reply(text), reset=_part(text, 0.5))),
    "half a body": ("connection", lambda text: replace(reply(text), cut=_part(text, 0.5))),
    "a body but its end": ("connection", lambda text: replace(reply(text), cut=_part(text, 0.99))),
}

# What stays as it is: the kind, and the answer.
FINAL: dict[str, tuple[str, Answer]] = {
    "400": ("http_4xx", error(400, "no such parameter")),
    "404": ("http_4xx", error(404, "no such model")),
    "context code": ("context_length", error(400, "too long", "context_length_exceeded")),
    "context words": ("context_length", error(400, "This model's maximum context length is 4096 tokens.")),
    "html": ("invalid_reply", Answer(body="<html>Sign in first</html>")),
    "other json": ("invalid_reply", Answer(body=json.dumps({"result": "fine", "choices": "two"}))),
    "not a list": ("invalid_reply", Answer(body="[1, 2]")),
    "no finish reason": ("invalid_reply", Answer(marked("Fine."), finish_reason=None)),
    "truncated": ("truncated", Answer(marked("Cut of"), finish_reason="length")),
    "filtered": ("content_filter", Answer("", finish_reason="content_filter")),
    "filtered 400": ("content_filter", error(400, "filtered", "content_filter")),
    "empty": ("empty", Answer(" \n")),
    "null": ("empty", Answer(None)),
    "refusal": ("refusal", Answer(None, message={"refusal": "I will not."})),
    "refusal spoken": ("refusal", Answer("I'm sorry, but I can't help with that.")),
    "no marker": ("unparsable", Answer("Here is what I think about it.")),
}

# What ends well: with a second request, or because it only looks odd.
HARMLESS: dict[str, Callable[[str], Answer]] = {
    "whole": reply,
    "truncated once": reply,
    "no marker once": reply,
    "thinks first": lambda text: Answer(
        f"<think>\n{marked(DRAFT)}\nNo, better so.\n</think>\n\n{marked(revision(text))}"
    ),
    "drips": lambda text: replace(reply(text), drip=0.5),
    "closes": lambda text: replace(reply(text), close=True),
    "closes idle": lambda text: replace(reply(text), idle_close=0.03),
}

ALL = [*WAY, *FINAL, *HARMLESS]
# These hold all calls for a second, so each is met once on the way.
SLOW = ("429 seconds", "429 date", "429 bare", "hang")
REFUSALS = [name for name in WAY if WAY[name][0] == "rate_limited"]
TWO_CALLS = ("truncated once", "no marker once", "truncated", "no marker")


@dataclass(frozen=True)
class Fate:
    """What a row meets: faults of the way that pass, and what it ends with."""

    first: tuple[str, ...]
    then: str

    @property
    def kind(self) -> str | None:
        """What the row fails with; None: it is kept."""
        if self.then in WAY:
            return WAY[self.then][0]
        return FINAL[self.then][0] if self.then in FINAL else None

    @property
    def of_the_way(self) -> bool:
        """Whether the row fails with what a later run asks for again."""
        return self.then in WAY

    @property
    def calls(self) -> int:
        """The calls that end with a reply, or with a failure that stays."""
        return 2 if self.then in TWO_CALLS else 1

    @property
    def replies(self) -> int:
        """Those of them whose reply names its tokens."""
        errors = self.then in WAY or (self.then in FINAL and FINAL[self.then][1].body is not None)
        return 0 if errors else self.calls


def draw(
    prompts: Iterable[str], seed: int, ends: Collection[str] | None = None, passing: float = 0.3
) -> dict[str, Fate]:
    """A plan for the rows with these prompts. Each of `ends` and, where there are rows enough, each
    passing fault befalls one at least; a share `passing` of the other rows meets some on the way.

    `ends` are all there are by default, but for 429s: with only one of those that stays, since a run waits
    longer and longer for several.
    """
    names = list(prompts)
    dice = random.Random(seed)
    refusal = dice.choice(REFUSALS)
    known = list(ends if ends is not None else [n for n in ALL if n == refusal or n not in REFUSALS])
    fates = [Fate((), end) for end in known]
    fates += [Fate((fault,), "whole") for fault in WAY]
    calm = [end for end in known if end in HARMLESS] or ["whole"]
    quick = [name for name in WAY if name not in SLOW]
    while len(fates) < len(names):
        faults = dice.choices(quick, k=dice.choice((1, 2))) if dice.random() < passing else []
        then = dice.choice(known) if dice.random() < 0.3 else dice.choice(calm)
        fates.append(Fate(tuple(faults), "whole" if then in WAY else then))
    del fates[len(names) :]
    dice.shuffle(fates)
    return dict(zip(names, fates, strict=True))


class Misbehaving:
    """The server's side of a plan, for a Loopback. `healed` are faults that stay no longer.

    Rows are told by their prompt, which must stand in one line.
    """

    def __init__(self, plan: Mapping[str, Fate], healed: Collection[str] = ()) -> None:
        self.plan = plan
        self.healed = frozenset(healed)
        self.tries: Counter[str] = Counter()  # requests by prompt

    def __call__(self, body: dict[str, Any], _: int) -> Answer:
        prompt, text = asked_about(body)
        fate = self.plan[prompt]
        tries = self.tries[prompt]
        self.tries[prompt] += 1
        if tries < len(fate.first):
            return WAY[fate.first[tries]][1](text)
        if fate.then in self.healed:
            return reply(text)
        if fate.then in WAY:
            return WAY[fate.then][1](text)
        if fate.then in FINAL:
            return FINAL[fate.then][1]
        if fate.then == "truncated once" and body["max_tokens"] <= MAX_TOKENS:
            return FINAL["truncated"][1]
        if fate.then == "no marker once" and len(body["messages"]) == 1:
            return FINAL["no marker"][1]
        return HARMLESS[fate.then](text)


_ABOUT = re.compile(r"\{task\}: (.*)\n\n\{student_solution\}: (.*?)\n\n-----", re.S)


def asked_about(body: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt and the answer of the row that a request in the paper's template is about."""
    found = _ABOUT.search(body["messages"][0]["content"])
    assert found
    return found[1], found[2]
