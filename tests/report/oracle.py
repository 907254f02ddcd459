"""Every measure of a pair worked out afresh: slow, and easy to check by eye."""

from __future__ import annotations

from typing import Any

import regex
from rapidfuzz.distance import Levenshtein

SINGLE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
RUN = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"
WORD = regex.compile(rf"{SINGLE}|[{RUN}--{SINGLE}]+|[^\p{{White_Space}}]", regex.V1)


def words(text: str) -> list[str]:
    return WORD.findall(text)


def measures(rejected: str, chosen: str) -> dict[str, Any]:
    a, b = words(rejected), words(chosen)
    union = set(a) | set(b)
    distance, edits = Levenshtein.distance(rejected, chosen), Levenshtein.distance(a, b)
    longest, most = max(len(rejected), len(chosen)), max(len(a), len(b))
    return {
        "jaccard": len(set(a) & set(b)) / len(union) if union else 1.0,
        "levenshtein": distance,
        "levenshtein_ratio": distance / longest if longest else 0.0,
        "word_edits": edits,
        "word_edit_ratio": edits / most if most else 0.0,
        "chosen_chars": len(chosen),
        "rejected_chars": len(rejected),
        "length_ratio": len(chosen) / len(rejected) if rejected else None,
        "identical": rejected == chosen,
    }
