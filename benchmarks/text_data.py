"""What `text.py` measures on: real pairs, pairs of the same shape made from them, and documents.

Made pairs are sentences of the real texts in a new order, revised by a seeded generator: for each pair it
draws the length of a real text and the edit ratio of a real pair, and then replaces, drops, adds, rephrases
and moves sentences until enough of the characters were touched for that ratio. So lengths and distances are
spread as in the real pairs, and no two pairs are the same.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
from rapidfuzz.distance import Levenshtein

Pairs = list[tuple[str, str]]

# The edit ratio of two English texts that have nothing to do with each other.
UNRELATED = 0.72
SHINGLE = 5
NEAR = 0.8
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")
WORDS = re.compile(r"\w+|[^\w\s]")


def real_pairs(folder: Path) -> Pairs:
    """Rejected and chosen texts of every file `pairs_*.parquet` in `folder`."""
    pairs: Pairs = []
    for path in sorted(folder.glob("pairs_*.parquet")):
        table = pq.read_table(path, columns=["rejected", "chosen"])
        sides = [
            [v if isinstance(v, str) else v[-1]["content"] for v in column.to_pylist()]
            for column in table.columns
        ]
        pairs += zip(*sides, strict=True)
    if not pairs:
        raise SystemExit(f"there is no pairs_*.parquet with pairs in {folder}")
    return pairs


def sentences(pairs: Pairs) -> list[str]:
    """All sentences and lines of the texts, each once, in their order."""
    found = (s.strip() for pair in pairs for text in pair for s in SENTENCE_END.split(text))
    return list(dict.fromkeys(s for s in found if len(s) >= 12))


class Writer:
    """Texts out of sentences; equal seeds give equal texts."""

    def __init__(self, pairs: Pairs, seed: int) -> None:
        self.random = Random(seed)
        self.pool = sentences(pairs)
        self.lengths = [len(text) for pair in pairs for text in pair if text]
        self.ratios = [Levenshtein.normalized_distance(a, b) for a, b in pairs]

    def text(self, length: int) -> list[str]:
        out: list[str] = []
        while sum(map(len, out)) < length:
            out.append(self.random.choice(self.pool))
        return out

    def rephrased(self, sentence: str) -> str:
        """A run of one to four words becomes up to four words of another sentence."""
        words, others = sentence.split(" "), self.random.choice(self.pool).split(" ")
        at, start = self.random.randrange(len(words)), self.random.randrange(len(others))
        run, more = self.random.randint(1, 4), self.random.randint(0, 4)
        return " ".join([*words[:at], *others[start : start + more], *words[at + run :]])

    def revised(self, lines: list[str], share: float) -> list[str]:
        """`lines` after edits that touch about `share` of their characters."""
        out, left = list(lines), share * sum(map(len, lines))
        while left > 0:
            at = self.random.randrange(len(out) + 1)
            old = out[at] if at < len(out) else ""
            edit = self.random.choices(("replace", "drop", "add", "rephrase", "move"), (3, 1, 2, 6, 1))[0]
            if edit == "add" or not old:
                new = [self.random.choice(self.pool)]
                out[at:at] = new
            elif edit == "move":
                new = [old]
                out.insert(self.random.randrange(len(out)), out.pop(at))
            else:
                new = {
                    "replace": [self.random.choice(self.pool)],
                    "drop": [],
                    "rephrase": [self.rephrased(old)],
                }[edit]
                out[at : at + 1] = new
            left -= 20 if edit == "rephrase" else max(len(old), *map(len, new), 1)
        return out

    def pair(self) -> tuple[str, str]:
        lines = self.text(self.random.choice(self.lengths))
        share = self.random.choice(self.ratios) / UNRELATED
        new = self.revised(lines, share) if share < 0.9 else self.text(self.random.choice(self.lengths))
        end = self.random.choice((" ", " ", "\n", "\n\n"))
        return end.join(lines), end.join(new)


def made_pairs(real: Pairs, count: int, seed: int) -> Pairs:
    writer = Writer(real, seed)
    return [writer.pair() for _ in range(count)]


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five words, lower-cased; a text with fewer words is one shingle."""
    words = WORDS.findall(text.lower())
    count = max(1, len(words) - SHINGLE + 1)
    return {tuple(words[i : i + SHINGLE]) for i in range(count)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


@dataclass
class Documents:
    """Texts of which a fifth are near-copies of others, and which of them really are near."""

    texts: list[str]
    near: dict[int, dict[int, float]]
    """For each document those at `NEAR` or nearer, by exact Jaccard of shingles."""

    def first(self, count: int) -> Documents:
        near = {
            row: {other: j for other, j in self.near[row].items() if other < count} for row in range(count)
        }
        return Documents(self.texts[:count], near)

    def judge(self, gone: Sequence[int], *, leaves: bool) -> tuple[float, float]:
        """Recall and precision of a clean-up that takes the rows `gone` out.

        Recall: the near pairs of which at most one row stays. Precision: the rows gone that are near one
        that stays; of what `leaves` none of a group, near any other.
        """
        away = set(gone)
        pairs = [(a, b) for a, others in self.near.items() for b in others if a < b]
        found = sum(a in away or b in away for a, b in pairs)
        right = sum(any(not leaves or other not in away for other in self.near[row]) for row in away)
        return found / max(1, len(pairs)), right / max(1, len(away))


def documents(real: Pairs, count: int, seed: int) -> Documents:
    """About a kilobyte each; every fifth is an earlier one with one to eight words changed."""
    writer = Writer(real, seed)
    random = writer.random
    texts: list[str] = []
    for number in range(count):
        if number % 5 == 4:
            words = random.choice(texts).split(" ")
            for _ in range(random.randint(1, 8)):
                words[random.randrange(len(words))] = random.choice(random.choice(writer.pool).split(" "))
            texts.append(" ".join(words))
        else:
            # Rephrased, for otherwise texts of so few sentences would share whole ones by chance.
            lines = writer.text(random.randint(300, 1600))
            texts.append(" ".join(writer.rephrased(writer.rephrased(line)) for line in lines))
    random.shuffle(texts)
    return Documents(texts, near_pairs([shingles(text) for text in texts]))


def near_pairs(sets: list[set[tuple[str, ...]]]) -> dict[int, dict[int, float]]:
    """All pairs at `NEAR` or nearer, found by counting shared shingles, so none is missed."""
    rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    near: dict[int, dict[int, float]] = {row: {} for row in range(len(sets))}
    for row, found in enumerate(sets):
        shared = Counter(other for shingle in found for other in rows[shingle])
        for other, count in shared.items():
            likeness = count / (len(found) + len(sets[other]) - count)
            if likeness >= NEAR:
                near[row][other] = near[other][row] = likeness
        for shingle in found:
            rows[shingle].append(row)
    return near
