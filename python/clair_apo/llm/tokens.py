"""Counting the tokens of requests and replies here: for forecasts, budgets, and servers that tell none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clair_apo import encodings, text
from clair_apo.llm.chat import Message

# What OpenAI's chat format adds to each message, with its role, and to the whole (their cookbook's counts).
MESSAGE_TOKENS = 4
REPLY_TOKENS = 3

# A server's count below this share of ours shows that it cut the prompt. No tokenizer in use packs English
# so much denser than o200k; in other scripts some do.
CUT_SHARE_ASCII = 0.85
CUT_SHARE = 0.6
# Counts below the least context that there is are no sign: some servers leave out what they had cached.
LEAST_CONTEXT = 256
# In English prose, where a token holds most. Up to this, a prompt is not counted to look for a cut: code,
# whose tokens hold less, must have lost a third to be noticed.
BYTES_OF_A_TOKEN = 5.0


def encoding_of(model: str) -> str:
    """The encoding by which the tokens of `model` are counted: its own for OpenAI's models, and the newest
    for all others, which comes nearest."""
    found = encodings.encoding_of_model(model.rpartition("/")[2])
    return found if found in encodings.ENCODINGS else "o200k_base"


def count_requests(requests: Sequence[Sequence[Message]], model: str) -> list[int]:
    """The prompt tokens of each request: exact for OpenAI's chat models, near for others."""
    contents = [message["content"] for request in requests for message in request]
    counts: Iterator[int] = iter(count_texts(contents, model))
    return [sum(next(counts) + MESSAGE_TOKENS for _ in request) + REPLY_TOKENS for request in requests]


def count_texts(texts: Sequence[str], model: str) -> list[int]:
    """The tokens of each text."""
    counts = text.count_tokens(list(texts), encoding_of(model))
    return [int(counts[index].as_py()) for index in range(len(counts))]


def was_cut(messages: Sequence[Message], tokens_in: int | None, model: str) -> bool:
    """Whether the number of prompt tokens that a server reports shows that it saw only a part."""
    size = sum(len(message["content"].encode()) for message in messages)
    if tokens_in is None or tokens_in < LEAST_CONTEXT or size < BYTES_OF_A_TOKEN * tokens_in:
        return False
    ascii_only = all(message["content"].isascii() for message in messages)
    ours = sum(count_texts([message["content"] for message in messages], model))
    return tokens_in < (CUT_SHARE_ASCII if ascii_only else CUT_SHARE) * ours
