"""Revisions as search-and-replace edits: fewer tokens, and minimal by construction.

A block has the lines `<<<<<<< SEARCH`, the text to find, `=======`, the text in its place, and
`>>>>>>> REPLACE`. All blocks are about the original answer. One whose text does not stand there exactly
once, that cuts a word or an indentation, or that overlaps another, or a reply that could be read in two
ways, applies nothing at all: the caller asks for a whole answer then.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from clair_apo.build.parser import Parsed, Refused, Unparsable
from clair_apo.build.thinking import is_refusal, strip_thinking

_BEGIN = re.compile(r"<{5,9} ?SEARCH[ \t\r]*")
_MIDDLE = re.compile(r"={5,9}[ \t\r]*")
_END = re.compile(r">{5,9} ?REPLACE[ \t\r]*")
_ANY = (_BEGIN, _MIDDLE, _END)
# Meant as a marker and none: indented, quoted, in small letters, of another length.
_ALMOST = re.compile("<{4}|>{4}")
_FENCE = re.compile(r"`{3,}\w*\s*$")
_LINE_END = re.compile(r"\r?\n")
# Scripts that write words without spaces, in which a word's end cannot be told from its midst.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WORD = re.compile(r"\w\w")
# What makes one sign of several characters, beside the marks of Unicode: a joiner, colours of skin.
_JOINER, _TONES = "\u200d", "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


def takes_edits(original: str) -> bool:
    """Whether edits of an answer can be told from it: none of its lines is like a marker."""
    return not any(_is_marker(line) or _ALMOST.search(line) for line in original.splitlines())


def parse_edits(reply: str, original: str, prompt: str = "") -> Parsed:
    """The original answer with the edits of a reply, and the reasons before the first of them.

    Raises Unparsable where any of them does not apply, Refused where the reply declines the task.
    """
    text = strip_thinking(reply, f"{prompt}\n{original}")
    if _is_crlf(text) or _is_crlf(original):
        text = text.replace("\r\n", "\n")
    try:
        reasons, edits = _blocks(text, "\r\n" if _is_crlf(original) else "\n")
    except Unparsable:
        if is_refusal(text.strip()) and not is_refusal(original):
            raise Refused(" ".join(text.split())[:200]) from None
        raise
    revision = apply(original, edits)
    if original == original.strip("\r\n"):
        revision = revision.strip("\r\n")  # where the first lines or the last ones went
    return Parsed(revision, _FENCE.sub("", reasons).strip() or None, comment_cut=False)


def apply(original: str, edits: Sequence[tuple[str, str | None]]) -> str:
    """`original` with each (search, replacement) done once, all found in `original` itself. None deletes,
    and where it deletes whole lines their end goes with them.

    Raises Unparsable for a search that is empty, is not there, is there more than once (overlapping
    occurrences count), is there as a part of a word or of other lines alone, or overlaps another.
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
        if _cuts(original, begin) or _cuts(original, end):
            raise Unparsable(f"the answer has {_start(search)!r} as a part of a word only")
        if not _keeps_lines(original, begin, end, replacement or ""):
            raise Unparsable(f"the answer has {_start(search)!r} in other lines")
        if replacement is None and (not begin or original[begin - 1] == "\n"):
            if line_end := _LINE_END.match(original, end):
                end = line_end.end()
            elif end == len(original) and begin:
                begin -= 2 if original[:begin].endswith("\r\n") else 1
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


def _is_crlf(text: str) -> bool:
    return 0 < text.count("\n") == text.count("\r\n")


def _cuts(text: str, at: int) -> bool:
    """Whether a place lies within a word, or within one of the signs that several characters make."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before == _JOINER or after == _JOINER or after in _TONES or unicodedata.category(after)[0] == "M":
        return True
    return bool(_WORD.fullmatch(before + after)) and not _UNSPACED.search(before + after)


def _keeps_lines(original: str, begin: int, end: int, replacement: str) -> bool:
    """Whether what was found stands in lines as it does in the block: an empty line at its edge is one
    there too, and one line behind an indentation does not become several without it."""
    lines = original[begin:end].split("\n")
    line = original.rfind("\n", 0, begin) + 1
    if len(lines) == 1:
        return not ("\n" in replacement and line < begin and not original[line:begin].strip())
    if not lines[0].strip() and line < begin:
        return False
    return bool(lines[-1].strip()) or end == len(original) or bool(_LINE_END.match(original, end))


def _blocks(text: str, line_end: str) -> tuple[str, list[tuple[str, str | None]]]:
    """What stands before the first block, and the blocks in order, with `line_end` between their lines;
    remarks between them are nothing. Raises Unparsable where markers stand in another order, or a line is
    almost one."""
    reasons: list[str] = []
    edits: list[tuple[str, str | None]] = []
    search: list[str] | None = None
    replacement: list[str] | None = None
    for line in text.split("\n"):
        if _ALMOST.search(line) and not _is_marker(line):
            raise Unparsable(f"{_start(line)!r} may be meant as a marker")
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
            edits.append((line_end.join(search), line_end.join(replacement) if replacement else None))
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
