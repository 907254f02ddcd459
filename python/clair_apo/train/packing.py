"""A microbatch of pairs without padding: what the two answers share stands once.

Each pair lies as `[prefix | chosen rest | rejected rest]`: the prefix is the prompt and whatever both
answers begin with, and the positions of the rejected rest go on from the prefix again. Attention over
it is in `attention.py`. Without sharing the prefix is empty and both rests are whole sequences.

A hidden row predicts the token behind it, so the last row of the prefix predicts the first token of
both rests. The entries to score are, pair by pair: those of the shared part of the answers, those of
the chosen rest, those of the rejected rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Pair(Protocol):
    """Token ids, int32: the prompt (at least one), and the answers, each empty where a row has none."""

    @property
    def prompt(self) -> NDArray[np.int32]: ...
    @property
    def chosen(self) -> NDArray[np.int32]: ...
    @property
    def rejected(self) -> NDArray[np.int32]: ...


class Branches(NamedTuple):
    """Where a pair lies among the tokens of a microbatch: its first token, and three lengths."""

    start: int
    prefix: int
    chosen: int
    rejected: int


class Entries(NamedTuple):
    """Where a pair lies among the entries to score: its first entry, and three counts."""

    start: int
    shared: int
    chosen: int
    rejected: int

    @property
    def total(self) -> int:
        return self.shared + self.chosen + self.rejected


@dataclass(frozen=True, slots=True)
class Packed:
    """One microbatch. All tensors are int64.

    `input_ids`, `position_ids` [1, T]; `rows` [K] hidden rows and the tokens `targets` [K] that they
    predict; `branches` and `entries` one for each pair."""

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor
    branches: tuple[Branches, ...]
    entries: tuple[Entries, ...]

    def to(self, device: torch.device | str) -> Packed:
        return Packed(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.rows.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.branches,
            self.entries,
        )

    @property
    def tokens(self) -> int:
        """Tokens that the model runs over."""
        return self.input_ids.shape[1]


def shared_answer(pair: Pair) -> int:
    """How many tokens the two answers have in common at their beginning; 0 where one is missing."""
    shorter = min(len(pair.chosen), len(pair.rejected))
    differ = np.flatnonzero(pair.chosen[:shorter] != pair.rejected[:shorter])
    return int(differ[0]) if len(differ) else shorter


def packed_tokens(pair: Pair, *, share: bool = True) -> int:
    """How many tokens a pair takes in a microbatch."""
    sides = [side for side in (pair.chosen, pair.rejected) if len(side)]
    answers = sum(map(len, sides))
    if share:
        return len(pair.prompt) + answers - shared_answer(pair)
    return len(pair.prompt) * len(sides) + answers


def pack(pairs: Sequence[Pair], *, share: bool = True) -> Packed:
    """Lays pairs side by side."""
    ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int64]] = []
    rows: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int32]] = []
    branches, entries = [], []
    token, entry = 0, 0
    for pair in pairs:
        prompt, shared = len(pair.prompt), shared_answer(pair) if share else 0
        prefix = np.concatenate([pair.prompt, pair.chosen[:shared]]) if share else pair.prompt[:0]
        lead = pair.prompt[:0] if share else pair.prompt
        rests = [
            np.concatenate([lead, side[shared:]]) if len(side) else side[:0]
            for side in (pair.chosen, pair.rejected)
        ]
        here = Branches(token, len(prefix), len(rests[0]), len(rests[1]))
        ids += [prefix, *rests]
        positions.append(np.arange(here.prefix))
        positions += [np.arange(here.prefix, here.prefix + len(rest)) for rest in rests]
        # Rows that predict the shared part, then each rest.
        rows.append(np.arange(prompt - 1, prompt - 1 + shared) + token)
        targets.append(pair.chosen[:shared])
        begins = token + here.prefix
        for side, rest in zip((pair.chosen, pair.rejected), rests, strict=True):
            scored = max(0, len(side) - shared)
            predicting = np.arange(begins + len(rest) - scored - 1, begins + len(rest) - 1)
            if share and scored:
                predicting[0] = token + here.prefix - 1
            rows.append(predicting)
            targets.append(side[len(side) - scored :])
            begins += len(rest)
        counts = [max(0, len(side) - shared) for side in (pair.chosen, pair.rejected)]
        branches.append(here)
        entries.append(Entries(entry, shared, *counts))
        token = begins
        entry += entries[-1].total

    def tensor(parts: Sequence[NDArray[np.int32] | NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Packed(
        tensor(ids)[None],
        tensor(positions)[None],
        tensor(rows),
        tensor(targets),
        tuple(branches),
        tuple(entries),
    )
