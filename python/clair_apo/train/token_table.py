"""Tokens of preference rows in one flat array."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One row's tokens, int32, views into the flat array. An answer includes its end of turn, and all
    of it is scored. `chosen` or `rejected` is empty in a row with one answer."""

    prompt: NDArray[np.int32]
    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """All rows' tokens: `tokens` int32 [T]; `offsets` int64 [n, 4] says where prompt, chosen and rejected
    of each row begin and where the row ends; `rows` int64 [n] are the file's rows, numbered from 0."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> TokenPair:
        start, chosen, rejected, end = self.offsets[index]
        tokens = self.tokens
        return TokenPair(tokens[start:chosen], tokens[chosen:rejected], tokens[rejected:end])

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of prompt, chosen and rejected: int64 [n, 3]."""
        return np.diff(self.offsets, axis=1)

    def hashes(self) -> list[bytes]:
        """What each row's tokens are, 16 bytes each."""
        return [_hash(self[i]) for i in range(len(self))]

    def content_hash(self) -> str:
        """What all rows' tokens are, in their order, in hexadecimal."""
        return hashlib.sha256(b"".join(self.hashes())).hexdigest()


class Mismatched:
    """The prompts of rows with one answer, each with the answer of another prompt: what KTO estimates its
    KL term from. Looks like the `TokenPairs` it is made of.

    A row takes the answer of the next row (the first follows the last) that has another prompt and with
    which it is no longer than the longest row; where there is none, the answer of the next row.
    """

    def __init__(self, pairs: TokenPairs) -> None:
        self._pairs = pairs
        self.rows = pairs.rows
        self.partners = _partners(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> TokenPair:
        other = self._pairs[self.partners[index]]
        return TokenPair(self._pairs[index].prompt, other.chosen, other.rejected)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of prompt, chosen and rejected: int64 [n, 3]."""
        own = self._pairs.lengths()
        return np.concatenate([own[:, :1], own[self.partners, 1:]], axis=1)

    def hashes(self) -> list[bytes]:
        """What each row's tokens are, 16 bytes each."""
        return [_hash(self[i]) for i in range(len(self))]


def _partners(pairs: TokenPairs) -> NDArray[np.int64]:
    count = len(pairs)
    lengths = pairs.lengths()
    longest = int(lengths.sum(axis=1).max(initial=0))
    answers = lengths[:, 1:].sum(axis=1)
    prompts = [pairs[i].prompt for i in range(count)]
    partners = (np.arange(count) + 1) % max(count, 1)
    for i, first in enumerate(partners):
        for other in ((int(first) + step) % count for step in range(min(count, 1000))):
            fits = lengths[i, 0] + answers[other] <= longest
            if fits and not np.array_equal(prompts[i], prompts[other]):
                partners[i] = other
                break
    return partners


def _hash(pair: TokenPair) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in (pair.prompt, pair.chosen, pair.rejected):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part.astype("<i4", copy=False).tobytes())
    return found.digest()
