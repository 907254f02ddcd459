"""A model's chat template, as training needs it: the text before an answer, the answer's own text with its
end of turn, the same on every day.

What counts is what generation sees: the template's text for the prompt (`add_generation_prompt`), behind
which the model writes its answer and ends its turn. What the template writes after the end of turn (a line
feed, in most) no model has to write, so it is no part of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from clair_apo.errors import ClairError
from clair_apo.terminal import one_line

Messages = list[dict[str, str]]

# The date that Llama's templates fall back to. Templates that ask for today's date are told this one, so
# that a run is the same on every day; which day it is matters little to an answer.
PINNED = date(2024, 7, 26)
_CLOCK = re.compile(r"strftime_now\(\s*(?:'([^']*)'|\"([^\"]*)\")")

_QUESTION = [{"role": "user", "content": "Question"}]
_ANSWER = "Answer"


class Unfit(Exception):
    """A row that the template gives no text for; `reason` is a key of `tokens.DROP_REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a prompt, and of each of its answers with its end of turn."""

    prompt: str
    answers: list[str]


class Template:
    """Text of prompts and answers. Raises ClairError at once where the template cannot be trained with."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        source = tokenizer.get_chat_template()
        self.pinned_date = PINNED.isoformat() if "strftime_now" in source else None
        self._arguments: dict[str, Any] = {"chat_template": _without_clock(source)}
        if "date_string" in source:
            self._arguments["date_string"] = f"{PINNED:%d %b %Y}"
        try:
            question, opened, whole = (
                self._text(messages, opens)
                for messages, opens in (
                    (_QUESTION, False),
                    (_QUESTION, True),
                    ([*_QUESTION, {"role": "assistant", "content": _ANSWER}], False),
                )
            )
        except Unfit as error:
            raise ClairError(
                f"the model's chat template refuses a question with an answer: {one_line(str(error))}"
            ) from error
        at = whole.rfind(_ANSWER)
        if at < 0:
            raise ClairError("the model's chat template leaves out the answer of the assistant")
        self._after = whole[at + len(_ANSWER) :]
        self.end_of_turn = self._found_end()
        #: What an answer ends with.
        self.ending = self._after[: self._after.index(self.end_of_turn) + len(self.end_of_turn)]
        #: What the template writes behind a prompt to open the assistant's turn.
        self.opening = opened[len(question) :] if opened.startswith(question) else ""
        #: What it writes between that and an answer; the model has to write it, so it is scored.
        self.lead = whole[len(opened) : at] if whole.startswith(opened) else ""
        #: Tokens that steer the model, as text: special ones, and those that the template writes.
        self.control = [
            token.content
            for token in _added_tokens(tokenizer)
            if token.special or token.content in question + self._after
        ]
        #: What it says by itself before the first message, the names of roles left out.
        first = re.split("|".join(map(re.escape, self.control)), whole.partition("Question")[0])
        said = [re.sub(r"^\w+\n", "", part).strip() for part in first]
        self.system = max((part for part in said if " " in part), key=len, default="")

    def render(self, prompt: Messages, answers: Sequence[str]) -> Rendered:
        """Raises Unfit where the template gives no text for the prompt or an answer."""
        if prompt[-1]["role"] == "assistant":
            raise Unfit("template", "the prompt ends with a message of the assistant")
        text = self._text(prompt, True)
        return Rendered(text, [self._answer(prompt, text, answer) for answer in answers])

    def _answer(self, prompt: Messages, before: str, answer: str) -> str:
        whole = self._text([*prompt, {"role": "assistant", "content": answer}], False)
        if not whole.startswith(before):
            shown = f"{before[-60:]!r}"
            raise Unfit("prompt_changes", f"the prompt ends in {shown}, but not once an answer follows")
        if not whole.endswith(self._after):
            raise Unfit("no_end_of_turn")
        return whole[len(before) : len(whole) - len(self._after)] + self.ending

    def _text(self, messages: Messages, opens: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens, **self._arguments
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise Unfit("template", str(error)) from error
        return text

    def _found_end(self) -> str:
        """The first token of the tokenizer that the template writes after an answer."""
        ends = [t.content for t in _added_tokens(self._tokenizer) if t.content in self._after]
        if not ends:
            shown = one_line(repr(self._after), 60)
            raise ClairError(
                f"the model's chat template ends the assistant's turn with no token of its own (it writes "
                f"{shown}), so the model would learn never to stop: in the model's folder, put "
                "{{ eos_token }} behind the assistant's content in chat_template.jinja"
            )
        return str(min(ends, key=lambda token: (self._after.index(token), -len(token))))


class PlainText:
    """In place of a template, for a model without one: prompt, answer, and the token that ends a text."""

    opening = lead = system = ""
    pinned_date = None

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token is None:
            raise ClairError("the model's tokenizer has no eos_token, so no answer would have an end")
        self.end_of_turn: str = tokenizer.eos_token
        self.ending = self.end_of_turn
        self.control = [token.content for token in _added_tokens(tokenizer) if token.special]
        # What the tokenizer itself puts before a text.
        ids = tokenizer("", add_special_tokens=True)["input_ids"]
        starts = bool(ids) and ids[0] == tokenizer.bos_token_id
        self._start = tokenizer.bos_token if starts else ""

    def render(self, prompt: Messages, answers: Sequence[str]) -> Rendered:
        """Raises Unfit where the prompt is a conversation, which plain text does not have."""
        if len(prompt) != 1:
            raise Unfit(
                "template", f"a conversation of {len(prompt)} messages, and the model has no chat template"
            )
        return Rendered(
            self._start + prompt[0]["content"], [answer + self.end_of_turn for answer in answers]
        )


class ControlTokens:
    """Finds what would steer the model in text that only quotes it."""

    def __init__(self, control: Iterable[str]) -> None:
        longest_first = sorted(control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def find(self, texts: Iterable[str]) -> str | None:
        """The first control token that one of the texts holds."""
        return next((found[0] for text in texts if (found := self._pattern.search(text))), None)


def _added_tokens(tokenizer: Any) -> list[Any]:
    """Without those of white space alone, which Gemma has and which steer nothing."""
    return [t for t in tokenizer.added_tokens_decoder.values() if t.content.strip()]


def _without_clock(template: str) -> str:
    """The template with a clock that stands still: a macro takes the place of `strftime_now`."""
    if "strftime_now" not in template:
        return template
    formats = {single or double for single, double in _CLOCK.findall(template)}
    known = ", ".join(f"{_quoted(f)}: {_quoted(f'{PINNED:{f}}')}" for f in sorted(formats))
    said = f"{{{{ {{{known}}}.get(format, {_quoted(PINNED.isoformat())}) }}}}"
    return f"{{% macro strftime_now(format) %}}{said}{{% endmacro %}}\n{template}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
