"""What may be wrong with a chosen answer. Each finding is a flag on the pair.

Everything is judged against the rejected answer (and the prompt): what stands there already is no slip
of a reviser's. Flags drop nothing unless `--drop` names them.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from clair_apo.build.draft import DISAGREEMENT, TIE
from clair_apo.build.markdown import ends_in_code
from clair_apo.build.templates import Template

FLAGS = {
    "truncated_look": "ends in the middle of a sentence, where the original does not",
    "leaked_frame": "speaks of the student, the revision or the correction, or has a marker left",
    "comment_cut": "the reviser's closing remark about its own work was cut off behind it",
    "prompt_cut": "the server's own count shows that it saw only a part of the prompt",
    "code_fence": "a code fence is opened and not closed",
    "script_switch": "written in another script than the original",
    "length_ratio": "much longer or shorter than the original (--length-ratio)",
    "edit_ratio": "more or less of it changed than a revision should (--minimality)",
    "rating_tie": "several answers share the highest or the lowest rating; of these the first was taken",
    "not_verified": "the judge does not find the chosen answer better in both orders, or gives no verdict "
    "(--verify, --rounds)",
    TIE: "no preference: the judge finds neither better, or the ratings are equal; always dropped",
    DISAGREEMENT: "no preference: the judges, or the two orders, do not agree; always dropped",
}


@dataclass(frozen=True, slots=True)
class Band:
    """A closed range of a ratio."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def distance(self, value: float) -> float:
        """How far outside of the band `value` lies."""
        return max(self.low - value, value - self.high, 0.0)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


# A rewrite of the whole answer lies near 1; two unrelated texts of one length lie near 0.75.
EDIT_RATIO = Band(0.0, 0.9)
LENGTH_RATIO = Band(0.5, 2.0)

_FRAME_WORD = re.compile(r"(?:students?|teachers?|revisions?|revised|corrected|corrections?)\b")
_NOT_ASCII = re.compile("[^\x00-\x7f]")
_ASCII_LETTERS = string.ascii_letters.encode()
_FRAME_STEMS = ("student", "teacher", "revis", "correct")
_FRAME_PHRASE = re.compile(
    r"\W*(?:(?:sure|certainly|of course|okay|absolutely)\W+)?(?:here(?:'s| is| are)|below is)\b[^\n]{0,60}?"
    r"\b(?:corrected|revised|revision|improved|rewritten|rewrite|updated|edited|enhanced)\b",
    re.I,
)
_CONTINUES = re.compile(r"[\w,;(\[{\-\u2013\u2014]")
_LIST_OR_TABLE = re.compile(r"\s*(?:[-*+\u2022]\s|\d+[.)]\s|#|\||>|```|~~~|\$\$|<)")


def check(
    original: str,
    revision: str,
    prompt: str,
    template: Template | None,
    measures: Mapping[str, float | None],
    edit_ratio: Band,
    length_ratio: Band,
    known: Iterable[str] = (),
) -> list[str]:
    """The flags of a pair, in the order of FLAGS: those that the texts show, and those that are `known`
    besides. `measures` are those of the pair, as `clair_apo.text.score` gives them. Without a `template`
    the chosen answer is no revision: it may speak of students, and differ as it likes."""
    found = {
        *known,
        *(["truncated_look"] if looks_truncated(original, revision) else []),
        *(["code_fence"] if ends_in_code(revision) and not ends_in_code(original) else []),
        *(["script_switch"] if switches_script(original, revision) else []),
        *(["length_ratio"] if _outside(measures["length_ratio"], length_ratio) else []),
    }
    if template is not None:
        if leaks_frame(original, revision, prompt, template):
            found.add("leaked_frame")
        if _outside(measures["levenshtein_ratio"], edit_ratio):
            found.add("edit_ratio")
    return [flag for flag in FLAGS if flag in found]


def _outside(value: float | None, band: Band) -> bool:
    return value is not None and value not in band


def looks_truncated(original: str, revision: str) -> bool:
    """Whether the last line breaks off in running text. Lists, tables, code and headings may end in
    any way, and so may a revision of an answer that does."""
    last = revision.rstrip().rpartition("\n")[2]
    if not _continues(last) or _LIST_OR_TABLE.match(last) or ends_in_code(revision):
        return False
    if _continues(original):
        return last.rstrip()[-1:] in ",(["
    # A single line without an end mark is a title or a bare answer, not a broken sentence.
    return len(last.split()) > 5


def _continues(text: str) -> bool:
    """Whether the last character leaves a sentence open."""
    return _CONTINUES.match(text.rstrip()[-1:]) is not None


def leaks_frame(original: str, revision: str, prompt: str, template: Template) -> bool:
    """Whether the revision speaks of what it is: words of the frame that neither the original nor the
    prompt has, an opening such as "here is the corrected", a marker or a line of the template."""
    said = _frame_words(revision)
    if said and not said <= _frame_words(original + "\n" + prompt):
        return True
    if _FRAME_PHRASE.match(revision) and not _FRAME_PHRASE.match(original):
        return True
    if any(line in revision and line not in original for line in _instructions(template)):
        return True
    markers = (template.answer_marker, template.reasoning_marker, "student_solution")
    return any(
        marker in revision and marker not in original and marker not in prompt for marker in markers
    ) or _stray_bold(revision, original)


def _frame_words(text: str) -> set[str]:
    lower = text.lower()
    found = set()
    for stem in _FRAME_STEMS:  # `find` is much faster than one pattern for all
        at = lower.find(stem)
        while at >= 0:
            begins = not at or not (lower[at - 1].isalnum() or lower[at - 1] == "_")
            if begins and (match := _FRAME_WORD.match(lower, at)):
                found.add(match[0].rstrip("s"))
            at = lower.find(stem, at + 1)
    return found


@cache
def _instructions(template: Template) -> tuple[str, ...]:
    """Sentences of the template that no answer holds by chance; weak revisers repeat them."""
    sentences = re.split(r"(?<=[.:!?])\s+|\n", template.text)
    return tuple(s for s in sentences if len(s) >= 20 and "{" not in s)


def _stray_bold(revision: str, original: str) -> bool:
    # What is left of a bold marker: two asterisks with nothing bold behind them.
    return revision.startswith("**\n") and not original.startswith("**\n")


def switches_script(original: str, revision: str) -> bool:
    """Whether most letters of the two are of different scripts. Two languages of one script are not
    told apart, and Japanese counts as one script."""
    if original.isascii() and revision.isascii():
        return False
    before, after = main_script(original), main_script(revision)
    return before is not None and after is not None and before != after


def main_script(text: str) -> str | None:
    """The script of more than half of the letters of `text`; None where there are hardly any letters
    or no such script."""
    counts: Counter[str] = Counter()
    ascii_part = text.encode("ascii", "ignore")
    latin = len(ascii_part) - len(ascii_part.translate(None, _ASCII_LETTERS))
    if latin:
        counts["LATIN"] = latin
    if len(ascii_part) < len(text):
        others = _NOT_ASCII.findall(text)
        for letter in set(others):
            if letter.isalpha():
                counts[_script(letter)] += others.count(letter)
    total = counts.total()
    if total < 10:
        return None
    if counts["KANA"]:  # Japanese mixes its own letters with Chinese ones
        counts["KANA"] += counts.pop("CJK", 0)
    script, most = counts.most_common(1)[0]
    return script if most * 2 > total else None


@cache
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]
    return {"HIRAGANA": "KANA", "KATAKANA": "KANA", "HALFWIDTH": "KANA"}.get(first, first)


def parse_flags(text: str | Sequence[str]) -> frozenset[str]:
    """The flags of `--drop a,b`. Raises ValueError with the known names for an unknown one."""
    names = text.split(",") if isinstance(text, str) else list(text)
    names = [name.strip() for name in names if name.strip()]
    for name in names:
        if name not in FLAGS:
            raise ValueError(f"{name!r} is no flag; known are {', '.join(FLAGS)}")
    return frozenset(names)
