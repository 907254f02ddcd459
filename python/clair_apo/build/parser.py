"""From a reviser's reply to the revision, or to the reason why there is none.

Rules: thinking is no part of the reply. A marker counts only where it begins a line and stands alone on
it or is followed by a colon; anything else is talk about the marker, and so is a marker in code. The
revision is the last section behind an answer marker that holds text; it ends at the next marker or where
the reviser begins to speak about its own work. When in doubt there is no revision: the reviser is asked
again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from clair_apo.build.closing import without_closing, without_litter
from clair_apo.build.markdown import FENCE, lines
from clair_apo.build.templates import ANSWER, Template
from clair_apo.build.thinking import is_refusal, strip_thinking, thinking_spans

# What opens and closes a marker: {x}, [x], <x>, **x**, `x`, ## x, "2. x" and what people mix of them.
_OPEN = r"[ \t]*(?:#{1,6}[ \t]+)?(?:\d{1,2}[.)][ \t]+)?[*_`]{0,3}[{\[<(]{0,2}[*_`]{0,3}"
_CLOSE = r"[*_`]{0,3}[}\]>)]{0,2}[*_`]{0,3}"
# Other words of the form that can stand behind an answer.
_FORM = re.compile(
    r"[ \t]*(?:\{/?(?:task|student_solution)\}|[\[{(*_]{1,3}end[ _]of[ _][\w ]{1,40}[\]})*_]{1,3}[ \t]*$)",
    re.I,
)
_FORM_BEGINS = frozenset("[{(*_")


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
    known = f"{prompt}\n{original}"
    text = strip_thinking(reply, known)
    if template.reply == ANSWER:
        revision, rationale = _trimmed(text), None
        if is_refusal(revision) and not is_refusal(original):
            raise Refused(_start(revision))
        if not revision:
            raise Unparsable("nothing is left of the reply without its thinking")
    else:
        revision, rationale = _marked(_unwrapped(text), template, original, known)
        revision = without_litter(revision, original)
    kept = without_closing(revision, original, prompt)
    return Parsed(kept, rationale, kept != revision)


@dataclass(frozen=True, slots=True)
class _Marker:
    start: int
    end: int  # where the section behind it begins
    answer: bool
    inline: bool = False  # the section begins on the marker's own line


@dataclass(frozen=True, slots=True)
class _Section:
    start: int
    text: str
    inline: bool


def _marked(text: str, template: Template, original: str, known: str) -> tuple[str, str | None]:
    markers = list(_markers(text, template, known))
    sections = [*_tagged(text, template.answer_marker), *_behind(text, markers)]
    sections.sort(key=lambda section: section.start)
    sections = [section for section in sections if not _doubtful(section, original)]
    if sections:
        last = sections[-1]
        longest = max(len(section.text) for section in sections)
        if last.inline and "\n\n" not in last.text and longest > 2 * len(last.text):
            raise Unparsable("a short last section stands behind a longer one: which is the answer?")
        return last.text, _rationale(text, template, markers, last.start)
    if is_refusal(text.strip()):
        raise Refused(_start(text))
    if any(marker.answer for marker in markers):
        raise Unparsable(f"no answer stands behind the marker {{{template.answer_marker}}}")
    raise Unparsable(f"no line begins with the marker {{{template.answer_marker}}}")


def _behind(text: str, markers: list[_Marker]) -> Iterator[_Section]:
    for index, marker in enumerate(markers):
        end = markers[index + 1].start if index + 1 < len(markers) else len(text)
        if marker.answer and (section := _trimmed(text[marker.end : end])):
            yield _Section(marker.start, section, marker.inline)


def _tagged(text: str, name: str) -> Iterator[_Section]:
    for match in _tags(name).finditer(text) if "</" in text else ():
        if section := _trimmed(match[1]):
            yield _Section(match.start(), section, inline=False)


def _doubtful(section: _Section, original: str) -> bool:
    """Whether a section on the marker's own line goes on like a sentence about the answer."""
    return section.inline and section.text[0].islower() and not original.lstrip()[:1].islower()


def _rationale(text: str, template: Template, markers: list[_Marker], end: int) -> str | None:
    """What stands before the answer, from the first reasoning marker if there is one."""
    tagged = _tags(template.reasoning_marker).search(text) if "</" in text else None
    if tagged:
        return tagged[1].strip() or None
    begin = next((m.end for m in markers if not m.answer and m.start < end), 0)
    return text[begin:end].strip(" \t\n:*_#-") or None


def _markers(text: str, template: Template, known: str) -> Iterator[_Marker]:
    """The markers of `text` in order, but for those in code or thinking. A line that prompt or original
    have too is their text, not the reviser's form."""
    answer, reasoning = (_pattern(name) for name in (template.answer_marker, template.reasoning_marker))
    braced = _braced(template.reasoning_marker)
    spans = thinking_spans(text, known)
    words = _first_word(template.answer_marker), _first_word(template.reasoning_marker)
    for start, line, in_code in lines(text):
        # Most lines are told by this alone, much faster than by the patterns.
        lower = line.lower()
        if words[0] not in lower and words[1] not in lower and lower.lstrip(" \t")[:1] not in _FORM_BEGINS:
            continue
        if in_code or any(a <= start < b for a, b in spans) or _is_line_of(line.strip(), known):
            continue
        if match := answer.match(line):
            # A closing tag ends a section; it begins none.
            begins = match["closing"] is None
            yield _Marker(start, start + match.end(), begins, bool(line[match.end() :].strip()))
        elif match := reasoning.match(line) or braced.match(line):
            yield _Marker(start, start + match.end(), False)
        elif _FORM.match(line):
            yield _Marker(start, start + len(line), False)


@cache
def _first_word(name: str) -> str:
    return next((word for word in re.split(r"[ _\-]+", name.lower()) if word), "")


def _is_line_of(line: str, known: str) -> bool:
    return line != "" and line in known and line in (other.strip() for other in known.splitlines())


@cache
def _braced(name: str) -> re.Pattern[str]:
    return re.compile(rf"[ \t]*[*_]{{0,3}}\{{{re.escape(name)}\}}", re.I)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    words = r"[ _\-]*".join(re.escape(word) for word in re.split(r"[ _\-]+", name) if word)
    return re.compile(
        rf"{_OPEN}(?P<closing>/)?{words}{_CLOSE}[ \t]*(?:[:\uff1a][*_`}}\])>]{{0,4}}|$)[ \t]*", re.I
    )


@cache
def _tags(name: str) -> re.Pattern[str]:
    """A section between tags, as XML-minded models write it."""
    return re.compile(rf"^[ \t]*<{re.escape(name)}>(.*?)</{re.escape(name)}>", re.I | re.S | re.M)


def _trimmed(text: str) -> str:
    """`text` without blank lines at both ends; code that begins it keeps its indent."""
    text = re.sub(r"^(?:[ \t]*\r?\n)+", "", text).rstrip()
    return text if text.startswith(("    ", "\t")) else text.lstrip()


def _unwrapped(text: str) -> str:
    """A reply that stands as a whole in one code fence, without the fence."""
    if not FENCE.match(text.strip().partition("\n")[0]):
        return text
    found = list(lines(text.strip()))
    if len(found) < 3 or not all(in_code for _, _, in_code in found):
        return text
    first, last = FENCE.match(found[0][1]), FENCE.match(found[-1][1])
    if not first or not last or last[2].strip():
        return text
    return "\n".join(line for _, line, _ in found[1:-1])


def _start(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:199] + "…"
