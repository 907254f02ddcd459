"""Texts that follow prompts, encoded so that the prompts' tokens stay as they are.

A prompt's tokens are those that generation begins with, and an answer's are those that follow them in the
tokens of the whole text. Where the tokenizer would join the end of the prompt with the beginning of the
answer, which no generation does, the answer is encoded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of prompts, and of answers behind them (None where they cannot be had). `moved` is how
    many answers would have changed their prompts' tokens."""

    prompts: list[Ids]
    answers: list[Ids | None]
    moved: int


class Encoder:
    """Encodes texts that follow prompts, so that the prompts' tokens stay.

    `opening` is what the prompts end with. If it begins with an added token, at which every fast tokenizer
    cuts the text, the tokens behind it hang on nothing before it, and answers are encoded behind it alone.
    """

    def __init__(self, tokenizer: Any, opening: str = "") -> None:
        self._tokenizer = tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content]
        cuts = tokenizer.is_fast and opening.startswith(tuple(added))
        self._opening = opening if cuts else ""
        self._opening_ids = self.ids([opening])[0]

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of each text, nothing put before or behind it."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            split_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]

    def encode(self, prompts: Sequence[str], answers: Sequence[tuple[int, str]]) -> Encoded:
        """`answers`: which of the prompts each one follows, and its text."""
        prompt_ids = self.ids(prompts)
        heads = [self._head(text, ids) for text, ids in zip(prompts, prompt_ids, strict=True)]
        joined = self.ids([heads[of][0] + text for of, text in answers])
        found: list[Ids | None] = []
        moved = []
        for place, ((of, _), ids) in enumerate(zip(answers, joined, strict=True)):
            head = heads[of][1]
            if not np.array_equal(ids[: len(head)], head):
                moved.append(place)
            found.append(ids[len(head) :])
        apart = self.ids([answers[place][1] for place in moved])
        for place, ids in zip(moved, apart, strict=True):
            # By itself a text may be encoded as the beginning of one, with a space before it.
            both = np.concatenate([heads[answers[place][0]][1], ids])
            found[place] = ids if self.text(both) == self.text(joined[place]) else None
        return Encoded(prompt_ids, found, len(moved))

    def text(self, ids: Ids) -> str:
        """What tokens stand for, control tokens included."""
        text: str = self._tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _head(self, prompt: str, ids: Ids) -> tuple[str, Ids]:
        """The part of a prompt that its answers are encoded behind."""
        opening = self._opening_ids
        if (
            self._opening
            and prompt.endswith(self._opening)
            and np.array_equal(ids[-len(opening) :], opening)
        ):
            return self._opening, opening
        return prompt, ids
