"""Log-probabilities of the untrained model: computed once, and kept for whoever trains on these pairs
again.

A pair's entry hangs on its tokens, on the weights of the model, and on how they are computed (`Key`), never
on a file's name. They are computed in the microbatches of the first epoch, by the very path that
training takes, so that the first loss is what theory says.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.terminal import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Raised when the same pair and weights would give other numbers.
PATH_VERSION = 2

RECORD = np.dtype([("pair", "S16"), ("chosen", "<f8"), ("rejected", "<f8")])


@dataclass(frozen=True, slots=True)
class Key:
    """What all entries of one file have in common."""

    weights: str
    dtype: str

    @property
    def name(self) -> str:
        text = f"{self.weights} {self.dtype} {PATH_VERSION}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class References:
    """`chosen`, `rejected` [n] float64, NaN where not known yet; `pairs` [n] are the pairs' hashes, 16
    bytes each."""

    def __init__(self, key: Key, pairs: Sequence[bytes], folder: Path | None = None) -> None:
        self.path = (folder or cache_folder()) / f"{key.name}.npy"
        self._pairs = np.array(list(pairs), dtype="S16")
        self.chosen = np.full(len(self._pairs), np.nan)
        self.rejected = np.full(len(self._pairs), np.nan)
        known = self._stored()
        if len(known):
            place = np.searchsorted(known["pair"], self._pairs).clip(max=len(known) - 1)
            found = known["pair"][place] == self._pairs
            self.chosen[found] = known["chosen"][place][found]
            self.rejected[found] = known["rejected"][place][found]

    def missing(self, pairs: Iterable[int]) -> bool:
        """Whether any of these is not known yet."""
        return bool(np.isnan(self.chosen[list(pairs)]).any())

    def put(self, pairs: Sequence[int], chosen: NDArray[np.float64], rejected: NDArray[np.float64]) -> None:
        self.chosen[list(pairs)], self.rejected[list(pairs)] = chosen, rejected

    def save(self) -> None:
        """Adds what is known to the file, beside what others put there in the meantime."""
        known = ~np.isnan(self.chosen)
        own = np.empty(int(known.sum()), RECORD)
        own["pair"], own["chosen"], own["rejected"] = (
            self._pairs[known],
            self.chosen[known],
            self.rejected[known],
        )
        # The first of equal ones stays: what was stored before.
        merged = np.concatenate([self._stored(), own])
        _, first = np.unique(merged["pair"], return_index=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(self.path) as temporary, temporary.open("wb") as file:
                file.write(_as_bytes(merged[first]))
        except OSError as error:
            raise ClairError(
                f"{one_line(str(self.path))}: the reference's log-probabilities cannot be kept: "
                f"{error.strerror or error}. XDG_CACHE_HOME says where they lie."
            ) from error

    def _stored(self) -> NDArray[Any]:
        """What the file holds, sorted by pair; nothing where it is missing or damaged."""
        try:
            stored = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return np.empty(0, RECORD)
        return stored if stored.dtype == RECORD else np.empty(0, RECORD)


def _as_bytes(records: NDArray[Any]) -> bytes:
    """A .npy file: written as a whole, since numpy's own writing hides what a disk says."""
    buffer = io.BytesIO()
    np.save(buffer, records, allow_pickle=False)
    return buffer.getvalue()


def cache_folder() -> Path:
    """`references` in the user's cache (`XDG_CACHE_HOME`), where the embedded model lies too."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clair-apo" / "references"
