"""Revisions as search-and-replace edits: fewer tokens, and minimal by construction.

A block has the lines `<<<<<<< SEARCH`, the text to find, `=======`, the text in its place, and
`>>>>>>> REPLACE`. All blocks are about the original answer. One whose text does not stand there exactly
once, or that overlaps another, or a reply that could be read in two ways, applies nothing at all: the
caller asks for a whole answer then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from clair_apo.build.parser import Parsed, Refused, Unparsable
from clair_apo.build.thinking import is_refusal, strip_thinking

_BEGIN = re.compile(r"<{5,9} ?SEARCH[ \t\r]*")
_MIDDLE = re.compile(r"={5,9}[ \t\r]*")
_END = re.compile(r">{5,9} ?REPLACE[ \t\r]*")
_ANY = (_BEGIN, _MIDDLE, _END)


def parse_edits(reply: str, original: str, prompt: str = "") -> Parsed:
    """The original answer with the edits of a reply, and the reasons before the first of them.

    Raises Unparsable where any of them does not apply, Refused where the reply declines the task.
    """
    text = strip_thinking(reply, f"{prompt}\n{original}")
    if is_refusal(text.strip()) and not is_refusal(original):
        raise Refused(" ".join(text.split())[:200])
    if any(_is_marker(line) for line in original.split("\n")):
        raise Unparsable("the answer itself holds lines like the markers of a block")
    reasons, edits = _blocks(text)
    return Parsed(apply(original, edits), reasons.strip("` \t\r\n") or None, comment_cut=False)


def apply(original: str, edits: Sequence[tuple[str, str | None]]) -> str:
    """`original` with each (search, replacement) done once, all found in `original` itself. None deletes,
    and where it deletes whole lines their end goes with them.

    Raises Unparsable for a search that is empty, is not there, is there more than once (overlapping
    occurrences count), or overlaps another.
    """
    places = []
    for search, replacement in edits:
        if not search.strip():
            raise Unparsable("a block has nothing to search for")
        begin = original.find(search)
        if begin < 0:
            raise Unparsable(f"the answer has no {_start(search)!r}")
        if original.find(search, begin + 1) >= 0:
            raise Unparsable(f"the answer has {_start(search)!r} more than once")
        end = begin + len(search)
        if replacement is None and (not begin or original[begin - 1] == "\n"):
            if original[end : end + 1] == "\n":
                end += 1
            elif end == len(original) and begin:
                begin -= 1
        places.append((begin, end, replacement or ""))
    places.sort()
    parts, done = [], 0
    for begin, end, new in places:
        if begin < done:
            raise Unparsable("two blocks overlap")
        parts += [original[done:begin], new]
        done = end
    revision = "".join([*parts, original[done:]])
    if not revision.strip():
        raise Unparsable("nothing is left of the answer")
    return revision


def _blocks(text: str) -> tuple[str, list[tuple[str, str | None]]]:
    """What stands before the first block, and the blocks in order; remarks between them are nothing. Raises
    Unparsable where markers stand in another order."""
    reasons: list[str] = []
    edits: list[tuple[str, str | None]] = []
    search: list[str] | None = None
    replacement: list[str] | None = None
    for line in text.split("\n"):
        if search is None:
            if _BEGIN.fullmatch(line):
                search = []
            elif _END.fullmatch(line) or (_MIDDLE.fullmatch(line) and edits):
                raise Unparsable(f"{line.strip()!r} stands outside of a block")
            elif not edits:
                reasons.append(line)
        elif replacement is None:
            if _MIDDLE.fullmatch(line):
                replacement = []
            elif _is_marker(line):
                raise Unparsable(f"{line.strip()!r} stands inside of a block")
            else:
                search.append(line)
        elif _END.fullmatch(line):
            edits.append(("\n".join(search), "\n".join(replacement) if replacement else None))
            search = replacement = None
        elif _is_marker(line):
            raise Unparsable(f"{line.strip()!r} stands inside of a block")
        else:
            replacement.append(line)
    if search is not None:
        raise Unparsable("the last block does not end")
    if not edits:
        raise Unparsable("the reply holds no block of edits")
    return "\n".join(reasons), edits


def _is_marker(line: str) -> bool:
    return any(marker.fullmatch(line) for marker in _ANY)


def _start(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:59] + "…"
