"""From a reviser's reply to the revision, or to the reason why there is none.

Rules: thinking is no part of the reply. A marker counts only where it begins a line and stands alone on
it or is followed by a colon; anything else is talk about the marker. The revision is the last section
behind an answer marker that holds text; it ends at the next marker or where the reviser begins to
speak about its own work. When in doubt there is no revision: the reviser is asked again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clair_apo.build.markdown import FENCE, lines
from clair_apo.build.templates import ANSWER, Template

_THINK = r"(?:think|thinking|thought|reasoning|reflection)"
_THINK_BLOCK = re.compile(rf"^[ \t]*<({_THINK})>.*?</\1>[ \t]*\n?", re.S | re.I | re.M)
_THINK_OPEN = re.compile(rf"^[ \t]*<{_THINK}>", re.I | re.M)
_THINK_CLOSE = re.compile(rf"^.*?</{_THINK}>[ \t]*\n?", re.S | re.I)
_RULE = re.compile(r"^[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*$", re.M)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
# What opens and closes a marker: {x}, [x], <x>, **x**, `x`, ## x, "2. x" and what people mix of them.
_OPEN = r"[ \t]*(?:#{1,6}[ \t]+)?(?:\d{1,2}[.)][ \t]+)?[*_`]{0,3}[{\[<(]{0,2}[*_`]{0,3}"
_CLOSE = r"[*_`]{0,3}[}\]>)]{0,2}[*_`]{0,3}"

_REFUSAL = re.compile(
    r"\W*(?:(?:i'?m|i am) (?:really |very |so )?(?:sorry|afraid|unable)\b"
    r"|(?:sorry|apologies|unfortunately)\W+(?:but )?i (?:can'?t|cannot|won'?t|am not able|am unable)\b"
    r"|i (?:can'?t|cannot|won'?t|am not able to|am unable to) (?:assist|help|comply|fulfil|provide|"
    r"continue|revise|do|engage|write|create|support|answer)\b"
    r"|as an ai\b[^.]{0,60}\bi (?:can'?t|cannot|won'?t|am not able|am unable)\b)",
    re.I,
)
_REFUSAL_CHARS = 600

# A closing remark: the reviser speaks about its own work. Each pattern is tried at the start of a
# paragraph. What names the student or the revision is one wherever it stands; changes in general are one
# unless the user asked for changes; and what might as well be part of an answer needs a rule above it.
_WORK = r"(?:changes|revisions?|corrections|improvements|edits|modifications)"
_TEXT = r"(?:answer|solution|version|response|text|explanation)"
_DID = r"(?:revised|corrected|kept|preserved|rewrote|rewritten|changed|copied|made|fixed|edited|improved)"
_NOTE = r"\W*(?:note\W+)?"
_ABOUT_FRAME = re.compile(
    rf"{_NOTE}(?:(?:in )?(?:this|the|my) revision\b"
    rf"|[^.\n]{{0,120}}\b(?:the|a) student['\u2019]s (?:original )?{_TEXT}\b)",
    re.I,
)
_ABOUT_CHANGES = re.compile(
    rf"{_NOTE}(?:(?:this|the|my) (?:revised|corrected|rewritten) {_TEXT}\b"
    rf"|i(?:'ve| have)? (?:\w+ )?{_DID}\b[^.\n]{{0,80}}\b(?:original|previous) {_TEXT}\b"
    rf"|(?:a )?(?:summary|explanation|list|overview) of (?:the |my )?{_WORK}\b"
    rf"|(?:key |main )?{_WORK} (?:i(?:'ve| have)? )?made\b|what (?:i|was) changed\b)",
    re.I,
)
_ABOUT_WORK = re.compile(
    rf"{_NOTE}(?:(?:this|the|my) (?:improved|updated|edited|enhanced) {_TEXT}\b"
    rf"|i(?:'ve| have)? (?:\w+ )?{_DID}\b[^.\n]{{0,80}}\b(?:{_TEXT}|{_WORK})\b)",
    re.I,
)
_ASKS_FOR_CHANGES = re.compile(
    r"\b(?:fix|edit|revis|rewrit|correct|improv|proofread|debug|refactor|rephras|paraphras|optimi[sz]|updat"
    r"|chang|mistake|error|grammar)\w*",
    re.I,
)


class Unparsable(Exception):
    """No revision can be told from the reply; the text says why."""


class Refused(Exception):
    """The reply declines the task."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A revision, the reviser's reasons for it if it gave any, and whether a closing remark about the
    revision itself was cut off behind it."""

    revision: str
    rationale: str | None
    comment_cut: bool


def parse(reply: str, template: Template, original: str, prompt: str = "") -> Parsed:
    """Reads `reply` as `template` says. `original` is the answer to `prompt` that was to be revised: what
    they say themselves is no slip of the reviser's.

    Raises Unparsable or Refused.
    """
    text = strip_thinking(reply)
    if template.reply == ANSWER:
        revision, rationale = text.strip(), None
        if is_refusal(revision) and not is_refusal(original):
            raise Refused(_start(revision))
        if not revision:
            raise Unparsable("nothing is left of the reply without its thinking")
    else:
        revision, rationale = _marked(_unwrapped(text), template)
    kept = _without_closing(revision, original, prompt)
    return Parsed(kept, rationale, kept != revision)


def strip_thinking(text: str) -> str:
    """`text` without the blocks in which reasoning models think aloud. A block that never ends takes
    the rest with it; one that has only its end, as some servers send it, begins at the start."""
    text = _THINK_BLOCK.sub("", text)
    opened = _THINK_OPEN.search(text)
    if opened:
        return text[: opened.start()]
    closed = _THINK_CLOSE.match(text)
    # In running text or code the tag may be what the answer is about; alone on its line it is not.
    if closed and text[: closed.end()].rstrip().splitlines()[-1].strip().lower().startswith("</"):
        return text[closed.end() :]
    return text


def is_refusal(text: str) -> bool:
    """Whether a short text only says that it will not do what was asked."""
    return len(text) <= _REFUSAL_CHARS and bool(_REFUSAL.match(text.replace("\u2019", "'")))


@dataclass(frozen=True, slots=True)
class _Marker:
    start: int
    end: int  # where the section behind it begins
    answer: bool


def _marked(text: str, template: Template) -> tuple[str, str | None]:
    tagged = [match for match in _tags(template.answer_marker).finditer(text) if match[1].strip()]
    if tagged:
        reasons = _tags(template.reasoning_marker).search(text)
        rationale = reasons[1] if reasons else text[: tagged[-1].start()]
        return tagged[-1][1].strip(), rationale.strip() or None
    markers = list(_markers(text, template))
    for index in reversed(range(len(markers))):
        marker = markers[index]
        if not marker.answer:
            continue
        end = markers[index + 1].start if index + 1 < len(markers) else len(text)
        section = text[marker.end : end].strip()
        if section:
            return section, _rationale(text, markers[:index], marker.start)
    if is_refusal(text.strip()):
        raise Refused(_start(text))
    if any(marker.answer for marker in markers):
        raise Unparsable(f"nothing stands behind the marker {{{template.answer_marker}}}")
    raise Unparsable(f"no line begins with the marker {{{template.answer_marker}}}")


def _rationale(text: str, before: list[_Marker], end: int) -> str | None:
    """What stands before the answer, from the first reasoning marker if there is one."""
    begin = next((marker.end for marker in before if not marker.answer), 0)
    return text[begin:end].strip(" \t\n:*_#-") or None


def _markers(text: str, template: Template) -> Iterator[_Marker]:
    """The markers of `text` in order. Those inside code are left out, unless there are no others."""
    answer, reasoning = (_pattern(name) for name in (template.answer_marker, template.reasoning_marker))
    frame = re.compile(r"[ \t]*\{/?(?:task|student_solution|end)\}", re.I)
    found: list[tuple[_Marker, bool]] = []
    for start, line, in_code in lines(text):
        for pattern, is_answer in ((answer, True), (reasoning, False)):
            match = pattern.match(line)
            if match:
                # A closing tag ends a section; it begins none.
                closing = match["closing"] is not None
                found.append((_Marker(start, start + match.end(), is_answer and not closing), in_code))
                break
        else:
            if frame.match(line):
                found.append((_Marker(start, start + len(line), False), in_code))
    outside = [marker for marker, in_code in found if not in_code]
    if not any(marker.answer for marker in outside):
        outside = [marker for marker, _ in found]
    yield from outside


def _pattern(name: str) -> re.Pattern[str]:
    words = r"[ _\-]*".join(re.escape(word) for word in re.split(r"[ _\-]+", name) if word)
    return re.compile(
        rf"{_OPEN}(?P<closing>/)?{words}{_CLOSE}[ \t]*(?:[:\uff1a][*_`}}\])>]{{0,4}}|$)[ \t]*", re.I
    )


def _tags(name: str) -> re.Pattern[str]:
    """A section between tags, as XML-minded models write it."""
    return re.compile(rf"^[ \t]*<{re.escape(name)}>(.*?)</{re.escape(name)}>", re.I | re.S | re.M)


def _unwrapped(text: str) -> str:
    """A reply that stands as a whole in one code fence, without the fence."""
    found = list(lines(text.strip()))
    if len(found) < 3 or not all(in_code for _, _, in_code in found):
        return text
    first, last = FENCE.match(found[0][1]), FENCE.match(found[-1][1])
    if not first or not last or last[2].strip():
        return text
    return "\n".join(line for _, line, _ in found[1:-1])


def _without_closing(text: str, original: str, prompt: str) -> str:
    """`text` without last paragraphs in which the reviser speaks about its revision."""
    patterns = [_ABOUT_FRAME]
    if not _ASKS_FOR_CHANGES.search(prompt):
        patterns.append(_ABOUT_CHANGES)
    patterns = [p for p in patterns if not _begins_paragraph(p, original)]
    behind_rule = [p for p in [*patterns, _ABOUT_WORK] if not _begins_paragraph(p, original)]
    for match in _PARAGRAPHS.finditer(text):
        begin = match.end()
        head, paragraph = text[:begin].rstrip(), text[begin:]
        rule = _RULE.match(paragraph)
        speech = paragraph[rule.end() :].lstrip() if rule else paragraph
        before, _, last = head.rpartition("\n")
        ruled = bool(rule or _RULE.fullmatch(last))
        if (
            any(pattern.match(speech) for pattern in (behind_rule if ruled else patterns))
            # A remark is short beside the answer; a whole chapter is part of it.
            and len(speech) <= max(400, len(text) // 3)
            and not _in_code(text, begin)
        ):
            return head if rule or not ruled else before.rstrip()
    return text


def _begins_paragraph(pattern: re.Pattern[str], text: str) -> bool:
    return any(pattern.match(part.strip()) for part in _PARAGRAPHS.split(text))


def _in_code(text: str, offset: int) -> bool:
    return any(in_code for start, line, in_code in lines(text) if start <= offset <= start + len(line))


def _start(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:199] + "…"
