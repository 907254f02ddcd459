"""Which pairs make which optimiser step, and which microbatch of which process.

A step has `batch_size` pairs over all processes; the last one of an epoch has what is left. Its pairs
are dealt to the processes so that each has about the same number of tokens, and cut into microbatches
within a budget of tokens. Every process runs the same number of microbatches, since gathering and
reducing weights needs all of them: one that has fewer pairs runs a pair once more, with weight zero.

All of it follows from the lengths, the seed and the epoch, so nothing has to be sent or saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Pairs that are run at once by one process, and how much each counts: 1, or 0 for a filler."""

    pairs: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step as one process sees it; `members` are its pairs over all processes."""

    number: int
    epoch: int
    members: tuple[int, ...]
    microbatches: tuple[Microbatch, ...]


class Plan:
    """`tokens` [n]: what each pair takes in a microbatch."""

    def __init__(
        self, tokens: Sequence[int], batch_size: int, budget: int, seed: int, processes: int = 1
    ) -> None:
        self.tokens = np.asarray(tokens, np.int64)
        self.batch_size, self.budget, self.seed, self.processes = batch_size, budget, seed, processes

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.tokens) // self.batch_size)

    def steps(self, first: int, last: int, process: int = 0) -> Iterator[Step]:
        """The steps `first` to `last` - 1, counted from 0 over all epochs."""
        each = self.steps_per_epoch
        epoch, order = -1, np.empty(0, np.int64)
        for number in range(first, last):
            if number // each != epoch:
                epoch = number // each
                order = np.random.default_rng([self.seed, epoch]).permutation(len(self.tokens))
            start = number % each * self.batch_size
            members = order[start : start + self.batch_size]
            yield Step(number, epoch, tuple(map(int, members)), self._microbatches(members)[process])

    def _microbatches(self, members: NDArray[np.int64]) -> list[tuple[Microbatch, ...]]:
        dealt = self._deal(members)
        cut = [self._cut(own, 1) for own in dealt]
        count = max(map(len, cut))
        result = []
        for own, parts in zip(dealt, cut, strict=True):
            if len(parts) < count:
                parts = self._cut(own, count)
            batches = [Microbatch(tuple(part), (1.0,) * len(part)) for part in parts]
            filler = Microbatch((int(min(members, key=lambda i: self.tokens[i])),), (0.0,))
            batches += [filler] * (count - len(batches))
            result.append(tuple(batches))
        return result

    def _deal(self, members: NDArray[np.int64]) -> list[list[int]]:
        """Longest first, each to the process with the fewest tokens so far."""
        dealt: list[list[int]] = [[] for _ in range(self.processes)]
        held = [0] * self.processes
        for pair in sorted(map(int, members), key=lambda i: (-self.tokens[i], i)):
            to = min(range(self.processes), key=lambda p: (held[p], p))
            dealt[to].append(pair)
            held[to] += int(self.tokens[pair])
        return dealt

    def _cut(self, pairs: list[int], least: int) -> list[list[int]]:
        """Into microbatches within the budget, at least `least` where there are as many pairs: longest
        first, each into the first that has room. A pair beyond the budget is alone."""
        parts: list[list[int]] = [[] for _ in range(min(least, len(pairs)))]
        room = [self.budget] * len(parts)
        for pair in pairs:
            size = int(self.tokens[pair])
            empty = next((i for i, part in enumerate(parts) if not part), None)
            place = empty
            if place is None:
                place = next((i for i, left in enumerate(room) if size <= left), None)
            if place is None:
                parts.append([])
                room.append(self.budget)
                place = len(parts) - 1
            parts[place].append(pair)
            room[place] -= size
        return parts
