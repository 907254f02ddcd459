"""One row of a preference file, whatever its shape: which columns hold the pair, and its texts.

The plain way, over Python values. `shapes` reads the common cases over Arrow columns and comes here
for the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clair_apo.files import Row, json_type, utf8

# What a consumer may ask for besides the two answers.
OPTIONAL = (
    "id",
    "prompt",
    "rationale",
    "flags",
    "method",
    "chosen_model",
    "rejected_model",
    "usage",
)
_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "prompt_id"),
    "prompt": ("prompt", "instruction", "question", "conversations", "input"),
    "rationale": ("rationale", "rational"),
    "flags": ("flags",),
    "method": ("method",),
    "chosen_model": ("chosen_model", "chosen-model"),
    "rejected_model": ("rejected_model", "rejected-model"),
    "usage": ("usage",),
}
PROMPT_NAMES = _NAMES["prompt"]
_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
_COMPLETIONS = "completions"
RESPONSES = ("response", "text", "content")
SCORES = ("overall_score", "rating", "score")
_ASSISTANTS = ("assistant", "gpt", "model", "bot")
HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

SKIP_REASONS = {
    "unreadable": "the row itself cannot be read (broken JSON, CSV or Parquet)",
    "missing_column": "the row lacks the columns of a pair",
    "null": "one side is null",
    "empty_list": "one side is a list without messages",
    "no_assistant_message": "one side holds no message of the assistant",
    "no_text": "the assistant's message holds no text",
    "wrong_type": "one side is neither text nor messages",
    "not_unicode": "the text is not valid Unicode",
    "too_few_answers": "fewer than two answers have both a text and a score",
    "tie": "the best and the worst answer have the same score",
    "no_prompt": "the row has no prompt",
    "not_text": "a message of the prompt holds something else than text",
    "prompts_differ": "the two answers stand in different conversations",
    "no_label": "the row has no label, true or false",
}


class Unreadable(Exception):
    """A row that holds no pair; `reason` is a key of SKIP_REASONS, the text says it of this row."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a file keeps its pairs: the two sides, or the rated answers if `rejected` is None."""

    chosen: str
    rejected: str | None
    sources: dict[str, str | None]  # optional name -> the column that holds it
    json_cells: bool = False  # text cells may hold message lists as JSON
    label: str | None = None  # rows have one answer, in both `chosen` and `rejected`, and say which it is

    @property
    def transcript(self) -> bool:
        """Whether a text may hold its whole conversation: there is no prompt beside it."""
        return self.sources["prompt"] is None

    def needed(self, wanted: Sequence[str]) -> list[str]:
        """The columns to read for the pairs and the optional columns in `wanted`."""
        names = [self.chosen, self.rejected, *(self.sources[w] for w in wanted)]
        return list(dict.fromkeys(n for n in names if n is not None))


# The parts of `tables.USAGE`: how many bits an integer has, None for a float.
_USAGE_BITS = {"calls": 32, "tokens_in": 64, "tokens_out": 64, "cost_usd": None}
# No count of tokens and no price is larger; a few of these still add up to a number.
_MOST = 1 << 60


def layout_of(names: Sequence[str], json_cells: bool = False) -> Layout | None:
    """The layout that a file with these column names has; None where they hold no pairs."""
    sources = {want: next((n for n in known if n in names), None) for want, known in _NAMES.items()}
    for chosen, rejected in _SIDES:
        if chosen in names and rejected in names:
            return Layout(chosen, rejected, sources, json_cells)
    if _COMPLETIONS in names:
        return Layout(_COMPLETIONS, None, sources, json_cells)
    return None


def unpaired_layout_of(names: Sequence[str], json_cells: bool = False) -> Layout | None:
    """The layout of rows with one answer and a label; None where the names are others."""
    answer, label = "completion", "label"
    if answer not in names or label not in names:
        return None
    sources = {want: next((n for n in known if n in names), None) for want, known in _NAMES.items()}
    return Layout(answer, answer, sources, json_cells, label)


def label_of(row: Row, column: str) -> bool:
    """Whether the row's answer is a desirable one. Raises Unreadable where it does not say."""
    value = row.get(column)
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (True, "true", "1"):
        return True
    if word in (False, "false", "0"):
        return False
    raise Unreadable("no_label", f"`{column}` is neither true nor false")


def optional_value(name: str, row: Row, layout: Layout) -> Any:
    """One optional column of a row, of its `shapes.optional_type`; None where the row lacks it."""
    source = layout.sources[name]
    value = None if source is None else row.get(source)
    if name == "prompt":
        return _prompt(row, layout)
    if name.endswith("_model") and value is None and layout.rejected is None:
        try:
            best, worst = _best_and_worst(row.get(layout.chosen))
        except Unreadable:
            return None
        value = (best if name == "chosen_model" else worst).get("model")
    if name == "flags":
        return [utf8(f) for f in value if isinstance(f, str)] if isinstance(value, list) else None
    if name == "usage":
        if not isinstance(value, dict):
            return None
        return {part: _number(value.get(part), bits) for part, bits in _USAGE_BITS.items()}
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return utf8(str(value))


def _number(value: Any, bits: int | None) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
        return None
    if bits is None:
        return float(value)
    return int(value) if abs(value) < 1 << (bits - 1) else None


def answers_of(row: Row, layout: Layout) -> tuple[str, str]:
    """The chosen and the rejected answer of a row. Raises Unreadable where it holds no pair."""
    if layout.rejected is None:
        best, worst = _best_and_worst(row.get(layout.chosen))
        return _checked(_response(best), layout.chosen), _checked(_response(worst), layout.chosen)
    return _answer(row, layout.chosen, layout), _answer(row, layout.rejected, layout)


def _answer(row: Row, column: str, layout: Layout) -> str:
    value = _parsed(row.get(column), layout.json_cells)
    if isinstance(value, bytes):
        raise Unreadable("not_unicode", f"`{column}` is not UTF-8")
    if isinstance(value, str):
        if layout.transcript and value.startswith(HUMAN) and _ASSISTANT in value:
            value = value.rpartition(_ASSISTANT)[2].removeprefix(" ")
        return _checked(value, column)
    messages = _messages(value, column)
    at = _last_assistant(messages)
    if at is None:
        raise Unreadable("no_assistant_message", f"`{column}` holds no assistant message")
    text = _content(messages[at])
    if text is None:
        raise Unreadable("no_text", f"the last assistant message of `{column}` holds no text")
    return _checked(text, column)


def _messages(value: Any, column: str) -> list[Row]:
    if value is None:
        raise Unreadable("null", f"`{column}` is null")
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        kind = "list of something else" if isinstance(value, list) else json_type(value)
        raise Unreadable("wrong_type", f"`{column}` is a {kind}, not text or a list of messages")
    if not messages:
        raise Unreadable("empty_list", f"`{column}` is an empty list")
    return messages


def _last_assistant(messages: list[Row]) -> int | None:
    at = (i for i in range(len(messages) - 1, -1, -1) if _role(messages[i]) in _ASSISTANTS)
    return next(at, None)


def _role(message: Row) -> Any:
    return message.get("role") or message.get("from")


def _content(message: Row) -> str | None:
    content = message.get("content")
    if content is None:
        content = message.get("value")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else p for p in content]
        texts = [p for p in parts if isinstance(p, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def _checked(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable("not_unicode", f"`{column}` holds half a surrogate pair") from None
    return text


def _parsed(value: Any, json_cells: bool) -> Any:
    """A cell that is a message list written as JSON, as that list; anything else as it is."""
    if not json_cells or not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    # An answer may be JSON itself: only what has the keys of messages is taken for them.
    messages = [found] if isinstance(found, dict) else found
    if messages and all(isinstance(m, dict) and (_role(m) or "response" in m) for m in messages):
        return found
    return value


def _best_and_worst(value: Any) -> tuple[Row, Row]:
    """The answers with the highest and the lowest score, the first ones of several."""
    answers = _messages(_parsed(value, isinstance(value, str)), _COMPLETIONS)
    answers = [a for a in answers if _response(a) is not None]
    for key in SCORES:
        scored = [(s, a) for a in answers if (s := _score(a.get(key))) is not None]
        if len(scored) >= 2:
            best = max(scored, key=lambda pair: pair[0])
            worst = min(scored, key=lambda pair: pair[0])
            if best[0] == worst[0]:
                raise Unreadable("tie", f"all answers have the {key} {best[0]:g}")
            return best[1], worst[1]
    raise Unreadable("too_few_answers", f"`{_COMPLETIONS}` has fewer than two scored answers")


def _response(answer: Row) -> Any:
    return next((answer[k] for k in RESPONSES if isinstance(answer.get(k), str)), None)


def _score(value: Any) -> float | None:
    """A score as a number: UltraFeedback writes some as text, and `N/A` where there is none."""
    try:
        score = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _prompt(row: Row, layout: Layout) -> str | None:
    """The prompt as text for people: a list of messages has each with its role."""
    source = layout.sources["prompt"]
    if source is not None:
        value = _parsed(row.get(source), layout.json_cells)
        if isinstance(value, dict):  # OpenAI's {"messages": [...]}
            value = value.get("messages")
    else:
        value = _parsed(row.get(layout.chosen), layout.json_cells)
        if isinstance(value, str):
            whole = value.startswith(HUMAN) and _ASSISTANT in value
            value = value.rpartition(_ASSISTANT)[0].strip() if whole else None
        elif isinstance(value, list) and all(isinstance(m, dict) for m in value):
            value = value[: _last_assistant(value) or 0]
    if isinstance(value, list):
        messages = [m for m in value if isinstance(m, dict)]
        if len(messages) == 1:
            value = _content(messages[0])
        else:
            value = "\n\n".join(f"{_role(m)}: {_content(m) or ''}" for m in messages) or None
    return utf8(value) if isinstance(value, str) else None


def prompt_messages(row: Row, layout: Layout) -> list[dict[str, str]] | None:
    """The prompt as a list of messages with `role` and `content`; None where the row has none.

    A conversation that the chosen answer repeats is the prompt where no list of messages says it better:
    a system prompt and earlier turns stand only there.
    """
    source = layout.sources["prompt"]
    value = None if source is None else _parsed(row.get(source), layout.json_cells)
    if isinstance(value, dict):  # OpenAI's {"messages": [...]}
        value = value.get("messages", value)
    if not isinstance(value, str):
        found = _plain_messages(value)
        if found:
            return found
    before = _before(row, layout.chosen, layout)
    text = utf8(value) if isinstance(value, str) and value else None
    if before and (text is None or any(m["content"] == text for m in before)):
        return before
    return None if text is None else [{"role": "user", "content": text}]


def text_only(row: Row, layout: Layout) -> bool:
    """Whether the messages before the answers hold text and nothing else: no picture, no call of a tool."""
    source = layout.sources["prompt"]
    value = None if source is None else _parsed(row.get(source), layout.json_cells)
    if isinstance(value, dict):
        value = value.get("messages", value)
    asked = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    chosen = _parsed(row.get(layout.chosen), layout.json_cells)
    said = chosen if isinstance(chosen, list) and layout.rejected is not None else []
    before = [m for m in said if isinstance(m, dict)]
    return all(
        _content(m) is not None and not m.get("tool_calls") and not _has_other_parts(m)
        for m in [*asked, *before[: _last_assistant(before) or 0]]
        if isinstance(m, dict)
    )


def _has_other_parts(message: Row) -> bool:
    content = message.get("content")
    if not isinstance(content, list):
        return False
    return any(isinstance(part, dict) and (part.get("type") or "text") != "text" for part in content)


def same_prompt(row: Row, layout: Layout) -> bool:
    """Whether the two answers, where both repeat the conversation before them, stand in the same one."""
    if layout.rejected is None or layout.rejected == layout.chosen:
        return True
    sides = [_before(row, column, layout) for column in (layout.chosen, layout.rejected)]
    return not all(sides) or sides[0] == sides[1]


def _before(row: Row, column: str, layout: Layout) -> list[dict[str, str]] | None:
    """The conversation that an answer's column repeats before the answer; None or empty without one."""
    value = _parsed(row.get(column), layout.json_cells)
    if layout.transcript and isinstance(value, str) and value.startswith(HUMAN):
        return _turns(value.rpartition(_ASSISTANT)[0])
    if layout.rejected is not None and isinstance(value, list):
        messages = [m for m in value if isinstance(m, dict)]
        return _plain_messages(messages[: _last_assistant(messages) or 0])
    return None


def _plain_messages(value: Any) -> list[dict[str, str]]:
    """Messages with the usual names of roles; those without text are left out."""
    names = {"human": "user", **dict.fromkeys(_ASSISTANTS, "assistant")}
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        return []
    found = []
    for message in messages:
        if isinstance(message, dict) and (content := _content(message)) is not None:
            role = str(_role(message) or "user")
            found.append({"role": utf8(names.get(role, role)), "content": utf8(content)})
    return found


def _turns(transcript: str) -> list[dict[str, str]]:
    """The turns of a transcript with `Human:` and `Assistant:`."""
    found = []
    for part in transcript.split(HUMAN)[1:]:
        asked, *answers = part.split(_ASSISTANT)
        found.append({"role": "user", "content": utf8(asked.strip())})
        found += [{"role": "assistant", "content": utf8(answer.strip())} for answer in answers]
    return found
