"""What in a reply is not meant for the reader: thinking aloud, and words that only decline the task."""

from __future__ import annotations

import re

from clair_apo.build.markdown import lines

_TAGS = r"think|thinking|thoughts?|reasoning|reflection|analysis|seed:think"
_OPEN = re.compile(rf"<({_TAGS})>|\[(think)\]|\u25c1(think)\u25b7", re.I)
# Only these may stand without their beginning: some servers swallow the tag that the template wrote.
_CLOSE = re.compile(r"</(?:think|thinking|seed:think)>|\[/think\]|\u25c1/think\u25b7", re.I)
_OPEN_BEGINS = ("<", "[", "\u25c1")
_CLOSE_BEGINS = ("</", "[/", "\u25c1/")

_VERBS = (
    r"(?:assist|help|comply|fulfil|provide|continue|revise|do|engage|write|create|support|answer|share|"
    r"discuss|generate|produce|offer|correct|improve|rewrite)"
)
_REFUSAL = re.compile(
    r"\W*(?:(?:i'?m|i am) (?:really |very |so )?(?:sorry|afraid)\W+|(?:sorry|apologies|unfortunately)\W+"
    r"|as an ai\b[^.]{0,60}?)?(?:but )?(?:that )?"
    r"(?:i can'?t|i cannot|i won'?t|(?:i am|i'm) (?:not able|unable) to|i must decline to) "
    rf"(?:\w+ly )?{_VERBS}\b",
    re.I,
)
_REFUSAL_CHARS = 600


def strip_thinking(text: str, known: str = "") -> str:
    """`text` without the blocks in which reasoning models think aloud before they answer.

    Only blocks at the very beginning count; one that never ends leaves nothing. Without a beginning, the
    thinking reaches up to its end tag. A tag that `known` (prompt, original answer) speaks of is part of
    the answer, and so is one in code.
    """
    while True:
        rest = text.lstrip()
        opened = _OPEN.match(rest)
        if opened is None or opened[0].lower() in known.lower():
            break
        closed = re.compile(re.escape(_closing(opened)), re.I).search(rest, opened.end())
        if closed is None:
            return ""
        text = rest[closed.end() :]
    if not any(begin in text for begin in _CLOSE_BEGINS):  # much faster than the pattern
        return text
    for closed in reversed(list(_CLOSE.finditer(text))):
        before = text[: closed.start()]
        if (
            closed[0].lower() not in known.lower()
            and not _OPEN.search(before)
            and not before.endswith("`")
            and not _in_code(text, closed.start())
        ):
            return text[closed.end() :].lstrip("\r\n")
    return text


def thinking_spans(text: str, known: str = "") -> list[tuple[int, int]]:
    """Where thinking stands in the middle of a reply: blocks that begin a line, outside of code."""
    spans: list[tuple[int, int]] = []
    if not any(begin in text for begin in _OPEN_BEGINS):
        return spans
    for opened in _OPEN.finditer(text):
        begins_line = not text[: opened.start()].rpartition("\n")[2].strip()
        if begins_line and opened[0].lower() not in known.lower() and not _in_code(text, opened.start()):
            closed = re.compile(re.escape(_closing(opened)), re.I).search(text, opened.end())
            spans.append((opened.start(), closed.end() if closed else len(text)))
    return spans


def is_refusal(text: str) -> bool:
    """Whether a short text only says that it will not do what was asked."""
    return len(text) <= _REFUSAL_CHARS and bool(_REFUSAL.match(text.replace("\u2019", "'")))


def _closing(opened: re.Match[str]) -> str:
    return f"{opened[0][0]}/{opened[0][1:]}"


def _in_code(text: str, offset: int) -> bool:
    return any(code for start, line, code in lines(text) if start <= offset <= start + len(line))
