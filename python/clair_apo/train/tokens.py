"""Preference rows as tokens: prompt and answers of each, by the model's chat template, in one flat array.

Nothing is cut to fit and nothing is repaired in silence. A row that cannot be trained on as generation
would see it is dropped, counted and listed; what concerns the model as a whole is an error that says what
to do.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clair_apo.conversations import Conversation, ConversationReader
from clair_apo.errors import ClairError
from clair_apo.shape_rows import SKIP_REASONS
from clair_apo.terminal import one_line
from clair_apo.train.encoder import Encoder, Ids
from clair_apo.train.template import ControlTokens, PlainText, Template, Unfit
from clair_apo.train.token_table import Mismatched, TokenPair, TokenPairs

__all__ = [
    "DROP_REASONS",
    "Dropped",
    "Mismatched",
    "TokenPair",
    "TokenPairs",
    "Tokenised",
    "check_vocabulary",
    "tokenise",
]

# Rows whose texts go to the tokenizer at once: enough for all cores, little memory.
BATCH_ROWS = 256

DROP_REASONS = {
    **SKIP_REASONS,
    "too_long": "prompt and longer answer have more tokens than --max-length",
    "prompt_too_long": "the prompt has more tokens than --max-prompt-length",
    "empty_answer": "an answer is empty",
    "identical": "both answers are the same tokens, which teaches nothing",
    "control_token": "the text holds one of the model's control tokens",
    "template": "the chat template does not take the messages",
    "prompt_changes": "the chat template writes another prompt once an answer follows",
    "no_end_of_turn": "the chat template ends this answer otherwise than others",
    "boundary": "the tokenizer joins prompt and answer, and cannot encode the answer by itself",
}
_WHAT_TO_DO = {
    "too_long": "raise --max-length",
    "prompt_too_long": "raise --max-prompt-length",
    "prompt_changes": "change chat_template.jinja in the model's folder so that what it writes for a whole "
    "conversation begins with what it writes for the prompt with add_generation_prompt",
    "no_end_of_turn": "change chat_template.jinja in the model's folder so that every answer ends alike",
    "boundary": "change chat_template.jinja in the model's folder so that what opens the assistant's turn "
    "ends in a control token",
}

_NONE: Ids = np.empty(0, np.int32)


class Dropped(NamedTuple):
    """A row left out. `reason` is a key of `DROP_REASONS`; `detail` says it of this row."""

    row: int
    id: str | None
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tokenised:
    """The rows of a file as tokens. `rows` is how many the file has; `notes` are sentences that a user
    should read once; `end_of_turn` is the token that answers end with, `pinned_date` the date that the
    chat template was told is today's (None where it does not ask)."""

    pairs: TokenPairs
    rows: int
    dropped: list[Dropped]
    notes: list[str]
    end_of_turn: str
    pinned_date: str | None

    def counts(self) -> dict[str, int]:
        """How many rows were dropped for each reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.dropped).most_common())

    def reasons(self) -> str:
        """The same in words."""
        return _in_words(self.counts())


def _in_words(counts: dict[str, int]) -> str:
    return "; ".join(f"{n:,} × {DROP_REASONS[reason]}" for reason, n in counts.items())


def tokenise(
    file: str | os.PathLike[str],
    tokenizer: Any,
    *,
    max_length: int = 2048,
    max_prompt_length: int | None = None,
    unpaired: bool = False,
    plain_text: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Tokenised:
    """The preference rows of `file` (a file, a folder or a glob) as tokens of `tokenizer`, of transformers.

    A row with more than `max_length` tokens (prompt and longer answer) or `max_prompt_length` in its prompt
    is dropped. `unpaired`: rows have one answer; a pair becomes two of them. `plain_text`: for a tokenizer
    without a chat template, prompt and answer as they are, and its eos_token behind the answer.
    `on_progress(rows, of)` is called as rows are done; `of` is None where only reading would tell.

    Raises ClairError where the file holds no preferences, where the tokenizer has no chat template or one
    that cannot be trained with, or where no row is left.
    """
    template = _template_of(tokenizer, plain_text)
    work = _Work(tokenizer, template, max_length, max_prompt_length, unpaired)

    def on_skip(row: int, name: str | None, reason: str, detail: str) -> None:
        work.dropped.append(Dropped(row, name, reason, one_line(detail)))

    reader = ConversationReader(file, unpaired, on_skip)
    total = reader.total_rows
    rows = iter(reader)
    while batch := list(islice(rows, BATCH_ROWS)):
        work.add(batch)
        if on_progress is not None:
            on_progress(reader.rows_read, total)
    work.dropped.sort(key=lambda dropped: dropped.row)
    found = work.result(reader.rows_read)
    if not len(found.pairs):
        counts = found.counts()
        advice = "; ".join(_WHAT_TO_DO[reason] for reason in counts if reason in _WHAT_TO_DO)
        raise ClairError(
            f"{one_line(str(file))}: no row is left to train on: {found.reasons() or 'it has none'}"
            + (f". Row {found.dropped[0].row}: {found.dropped[0].detail}" if found.dropped else "")
            + (f". What to do: {advice}" if advice else "")
        )
    return found


def _template_of(tokenizer: Any, plain_text: bool) -> Template | PlainText:
    if plain_text:
        return PlainText(tokenizer)
    if not tokenizer.chat_template:
        raise ClairError(
            "the model has no chat template, so nothing says how a prompt and an answer look to it: take "
            "its instruction-tuned version, put a chat_template.jinja into its folder, or give --plain-text"
        )
    return Template(tokenizer)


@dataclass(slots=True)
class _Text:
    """One row on its way: its texts, and which of its answers are `chosen` and `rejected`."""

    source: Conversation
    prompt: str
    chosen: str | None
    rejected: str | None


@dataclass(slots=True)
class _Work:
    """Collects the tokens of one file."""

    tokenizer: Any
    template: Template | PlainText
    max_length: int
    max_prompt_length: int | None
    unpaired: bool
    dropped: list[Dropped] = field(default_factory=list)
    tokens: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    altered: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    unknown: int = 0
    control: ControlTokens = field(init=False)
    encoder: Encoder = field(init=False)
    steers: NDArray[np.bool_] = field(init=False)  # by token: whether it is a control token
    steering: int = field(init=False)  # control tokens in an answer that the template writes itself

    def __post_init__(self) -> None:
        template = self.template
        self.control = ControlTokens(template.control)
        self.encoder = Encoder(self.tokenizer, template.opening)
        self.steers = np.zeros(max(self.tokenizer.get_vocab().values()) + 1, np.bool_)
        self.steers[self.tokenizer.convert_tokens_to_ids(template.control)] = True
        if self.tokenizer.unk_token_id is not None:  # what stands for unknown text steers nothing
            self.steers[self.tokenizer.unk_token_id] = False
        own = self.encoder.ids([template.lead + template.ending])[0]
        self.steering = int(np.count_nonzero(self.steers[own]))

    def add(self, batch: Sequence[Conversation]) -> None:
        texts = [text for row in batch for text in self._texts(row)]
        wanted = [
            (i, answer)
            for i, text in enumerate(texts)
            for answer in (text.chosen, text.rejected)
            if answer is not None
        ]
        encoded = self.encoder.encode([text.prompt for text in texts], wanted)
        self.moved += encoded.moved
        found = iter(encoded.answers)
        for text, prompt in zip(texts, encoded.prompts, strict=True):
            answers = [_NONE if a is None else next(found) for a in (text.chosen, text.rejected)]
            self._check_start(prompt)
            if why := self._misfit(prompt, answers):
                self._drop(text.source, *why)
            else:
                self._append(text.source.row, [prompt, *(ids for ids in answers if ids is not None)])

    def _texts(self, row: Conversation) -> list[_Text]:
        """The row's texts, two of them where a pair becomes two rows; none where it is dropped."""
        wanted = (row.chosen, row.rejected) if row.label is None else (row.chosen,)
        if not all(answer.strip() for answer in wanted):
            return self._drop(row, "empty_answer")
        if row.label is None and row.chosen == row.rejected:
            return self._drop(row, "identical")
        said = (part for message in row.prompt for part in (message["role"], message["content"]))
        if held := self.control.find((*wanted, *said)):
            return self._drop(row, "control_token", f"the text holds {held}")
        try:
            rendered = self.template.render(row.prompt, wanted)
        except Unfit as unfit:
            return self._drop(row, unfit.reason, str(unfit))
        prompt, answers = rendered.prompt, rendered.answers
        for answer, text in zip(wanted, answers, strict=True):
            if answer not in text:
                self.altered["trimmed" if answer.strip() in text else "changed"] += 1
        if row.label is not None:
            return [
                _Text(row, prompt, answers[0], None) if row.label else _Text(row, prompt, None, answers[0])
            ]
        if self.unpaired:
            return [_Text(row, prompt, answers[0], None), _Text(row, prompt, None, answers[1])]
        return [_Text(row, prompt, answers[0], answers[1])]

    def _misfit(self, prompt: Ids, answers: Sequence[Ids | None]) -> tuple[str, str] | None:
        """Why a row's tokens are not trained on, as reason and detail; None where they are."""
        found = [ids for ids in answers if ids is not None]
        if len(found) < len(answers):
            return "boundary", ""
        if any(np.count_nonzero(self.steers[ids]) != self.steering for ids in found if len(ids)):
            return "control_token", ""
        limit = self.max_prompt_length
        if limit is not None and len(prompt) > limit:
            return "prompt_too_long", f"{len(prompt):,} tokens in the prompt"
        size = len(prompt) + max(map(len, found))
        if size > self.max_length:
            return "too_long", f"{size:,} tokens"
        if np.array_equal(found[0], found[1]):
            return "identical", ""
        return None

    def _drop(self, row: Conversation, reason: str, detail: str = "") -> list[_Text]:
        said = one_line(detail or DROP_REASONS[reason])
        self.dropped.append(Dropped(row.row, row.id, reason, said))
        return []

    def _check_start(self, prompt: Ids) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(prompt) > 1 and prompt[0] == prompt[1] == bos:
            raise ClairError(
                f"every prompt begins with two {self.tokenizer.bos_token}: the model's chat template "
                "writes it twice. Take one out of chat_template.jinja in the model's folder"
            )

    def _append(self, row: int, parts: Sequence[Ids]) -> None:
        self.unknown += any(self.tokenizer.unk_token_id in ids for ids in parts)
        for ids in parts:
            self.offsets.append(len(self.tokens))
            self.tokens.frombytes(ids.tobytes())
        self.offsets.append(len(self.tokens))
        self.rows.append(row)

    def result(self, rows: int) -> Tokenised:
        offsets = np.frombuffer(self.offsets, np.int64).reshape(-1, 4)
        pairs = TokenPairs(
            np.frombuffer(self.tokens, np.int32), offsets, np.frombuffer(self.rows, np.int64)
        )
        template = self.template
        return Tokenised(
            pairs, rows, self.dropped, self._notes(), template.end_of_turn, template.pinned_date
        )

    def _notes(self) -> list[str]:
        template = self.template
        notes = []
        if isinstance(template, PlainText):
            notes.append(
                f"no chat template is used: an answer follows its prompt as it is, and "
                f"{template.end_of_turn} ends it"
            )
        if template.pinned_date is not None:
            notes.append(f"the chat template asks for today's date and is told {template.pinned_date}")
        if template.system:
            notes.append(
                "the chat template begins conversations without a system message with words of its own: "
                f"{one_line(template.system, 80)}"
            )
        if template.lead.strip():
            notes.append(
                f"the chat template writes {one_line(repr(template.lead), 60)} before each answer, where "
                "generation has the model write it: it is scored with the answer"
            )
        if n := self.altered["trimmed"]:
            notes.append(f"the chat template takes white space off the ends of {n:,} answers")
        if n := self.altered["changed"]:
            notes.append(
                f"the chat template changes or leaves out parts of {n:,} answers (thinking, in some models)"
            )
        if n := self.unknown:
            notes.append(
                f"{n:,} rows hold text that the tokenizer has no tokens for, as {self.tokenizer.unk_token}"
            )
        if n := self.moved:
            notes.append(
                f"{n:,} answers are encoded apart from their prompts, whose last token they would "
                "have changed"
            )
        return notes


def check_vocabulary(tokenizer: Any, rows_of_head: int, pairs: TokenPairs | None = None) -> None:
    """Raises ClairError where the tokenizer has tokens that the model, with `rows_of_head` rows in its
    head, has not. Added tokens beyond the head are let pass where none of `pairs` holds one: Gemma 3
    has such a token, for images, beside a model of text."""
    ids = tokenizer.get_vocab().values()
    added = tokenizer.added_tokens_decoder
    beyond = [i for i in ids if i >= rows_of_head]
    used = pairs is not None and len(pairs.tokens) and int(pairs.tokens.max()) >= rows_of_head
    if used or any(pairs is None or i not in added for i in beyond):
        raise ClairError(
            f"the tokenizer has tokens up to number {max(ids):,}, but the model's head only "
            f"{rows_of_head:,} rows: they do not belong together. Take the tokenizer that was saved with "
            "the model, or enlarge the model with resize_token_embeddings and save it"
        )


# What of a sample's prompt and of its answers is shown, in characters.
