"""Closing remarks: what a reviser says about its own work behind the answer, and no reader should see.

Each pattern is tried at the start of a last paragraph. What names the student or the revision is a remark
wherever it stands; changes in general are one unless the user asked for changes; and what might as well be
part of an answer needs a rule above it. What the original says in the same way always stays.
"""

from __future__ import annotations

import re

from clair_apo.build.markdown import ends_in_code

_RULE = re.compile(r"^[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*$", re.M)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")

_WORK = r"(?:changes|revisions?|corrections|improvements|edits|modifications)"
_TEXT = r"(?:answer|solution|version|response|text|explanation)"
_DID = r"(?:revised|corrected|kept|preserved|rewrote|rewritten|changed|copied|made|fixed|edited|improved)"
_LEAD = r"\W*(?:note\W+|overall\W+|finally\W+|in summary\W+)?"
_FIRST = rf"i(?:'ve| have)? (?:\w+ )?{_DID}\b"
_ABOUT_REVISION = re.compile(rf"{_LEAD}(?:in )?(?:this|the|my) revision\b", re.I)
_ABOUT_STUDENT = re.compile(rf"{_LEAD}[^.\n]{{0,120}}\bthe student['\u2019]s (?:original )?{_TEXT}\b", re.I)
_ABOUT_CHANGES = re.compile(
    rf"{_LEAD}(?:(?:this|the|my) (?:revised|corrected|rewritten) {_TEXT}\b(?! of\b)"
    rf"|{_FIRST}[^.\n]{{0,80}}\b(?:(?:original|previous) {_TEXT}|everything else|the rest|as is|intact)\b"
    rf"|(?:a )?(?:summary|explanation|list|overview) of (?:the |my )?{_WORK}\b"
    rf"|(?:key |main )?{_WORK} (?:i(?:'ve| have)? )?made\b|what (?:i|was) changed\b"
    rf"|(?:key |main )?{_WORK}\W*:|(?:these|all) {_WORK}\b)"
    rf"|\W*note\W+{_FIRST}",
    re.I,
)
_ABOUT_WORK = re.compile(
    rf"{_LEAD}(?:(?:this|the|my) (?:improved|updated|edited|enhanced) {_TEXT}\b"
    rf"|{_FIRST}[^.\n]{{0,80}}\b(?:{_TEXT}|{_WORK})\b|(?:reasoning|rationale|justification)\W*:)",
    re.I,
)
_ASKS_FOR_CHANGES = re.compile(
    r"\b(?:fix|edit|revis|rewrit|correct|improv|proofread|debug|refactor|rephras|paraphras|optimi[sz]|updat"
    r"|chang|mistake|error|grammar|release note)\w*",
    re.I,
)


def without_closing(text: str, original: str, prompt: str) -> str:
    """`text` without last paragraphs in which the reviser speaks about its revision."""
    begins = [match.end() for match in _PARAGRAPHS.finditer(text)]
    last_line = text.rfind("\n") + 1
    about = [_ABOUT_REVISION, _ABOUT_CHANGES, _ABOUT_WORK]
    if "student" in text.lower():
        about.append(_ABOUT_STUDENT)
    if not any(
        pattern.match(speech)
        for speech in (_speech(text[begin:]) for begin in (*begins, last_line) if begin)
        for pattern in about
    ):
        return text  # as nearly all: what the original says need not be looked at
    patterns = [_ABOUT_REVISION]
    if "student" not in (original + prompt).lower():
        patterns.append(_ABOUT_STUDENT)
    if not _ASKS_FOR_CHANGES.search(prompt):
        patterns.append(_ABOUT_CHANGES)
    theirs = [p for p in (*patterns, _ABOUT_WORK) if _begins_paragraph(p, original)]
    alone = [p for p in patterns if p not in theirs]
    behind_rule = alone if _ABOUT_WORK in theirs else [*alone, _ABOUT_WORK]
    places = [(begin, alone) for begin in begins]
    if last_line and last_line not in begins:  # a remark that was not set off
        places.append((last_line, [p for p in alone if p is not _ABOUT_CHANGES]))
    for begin, patterns_here in places:
        head, paragraph = text[:begin].rstrip(), text[begin:]
        rule, speech = _RULE.match(paragraph), _speech(paragraph)
        before, _, last = head.rpartition("\n")
        ruled = bool(rule or _RULE.fullmatch(last))
        if (
            any(pattern.match(speech) for pattern in (behind_rule if ruled else patterns_here))
            # A remark is short beside the answer; a whole chapter, or code, is part of it.
            and len(speech) <= max(400, len(text) // 3)
            and "```" not in speech
            and not ends_in_code(text[:begin])
        ):
            return head if rule or not ruled else before.rstrip()
    return text


def _speech(paragraph: str) -> str:
    """A paragraph without the rule above it."""
    rule = _RULE.match(paragraph)
    return paragraph[rule.end() :].lstrip() if rule else paragraph


def without_litter(text: str, original: str) -> str:
    """`text` without what is left at its end of the form of a reply: a rule, or a fence that closes
    nothing."""
    before, _, last = text.rpartition("\n")
    if before and not original.rstrip().endswith(last.strip()):
        if _RULE.fullmatch(last):
            return before.rstrip()
        if last.strip("`~ ") == "" and ends_in_code(text) and not ends_in_code(before):
            return before.rstrip()
    return text


def _begins_paragraph(pattern: re.Pattern[str], text: str) -> bool:
    return any(pattern.match(part.strip()) for part in _PARAGRAPHS.split(text))
