"""The little of Markdown that matters here: which lines stand inside a code fence."""

from __future__ import annotations

import re
from collections.abc import Iterator

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")
_MARKS = ("```", "~~~")


def lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(offset, line without its end, whether it belongs to fenced code) for each line of `text`."""
    fence = ""
    offset = 0
    if not any(mark in text for mark in _MARKS):  # as most texts: no line needs the pattern
        for whole in text.splitlines(keepends=True):
            yield offset, whole.rstrip("\r\n"), False
            offset += len(whole)
        return
    for whole in text.splitlines(keepends=True):
        line = whole.rstrip("\r\n")
        match = FENCE.match(line)
        if match and not fence:
            fence = match[1]
            yield offset, line, True
        elif match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
            yield offset, line, True
        else:
            yield offset, line, bool(fence)
        offset += len(whole)


def ends_in_code(text: str) -> bool:
    """Whether a code fence is opened and never closed."""
    fence = ""
    if not any(mark in text for mark in _MARKS):
        return False
    for line in text.splitlines():
        match = FENCE.match(line)
        if match and not fence:
            fence = match[1]
        elif match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
    return bool(fence)
