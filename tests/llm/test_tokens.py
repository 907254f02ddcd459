"""Counting tokens here, and telling that a server cut a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clair_apo.llm.tokens import count_requests, count_texts, encoding_of, was_cut


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0125-preview", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4.1-mini", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("openai/gpt-4", "cl100k_base"),
        ("o3", "o200k_base"),
        ("meta-llama/Llama-3-8B", "o200k_base"),
    ],
)
def test_encodings_by_model(model: str, encoding: str) -> None:
    import tiktoken

    assert encoding_of(model) == encoding
    if "lama" not in model and "/" not in model:
        assert tiktoken.encoding_name_for_model(model) == encoding


def test_requests_are_counted_as_openai_counted_the_real_ones(shared_data: Path) -> None:
    """The authors' calls, with the usage that OpenAI reported. Theirs had an empty system message."""
    from clair_apo.build import templates

    template = templates.load("paper")
    for line in (shared_data / "clair_transcripts.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        asked = template.ask([{"role": "user", "content": row["prompt"]}], row["response"])
        theirs = [{"role": "system", "content": ""}, *asked]
        assert count_requests([theirs], row["model"]) == [row["usage"]["prompt_tokens"]]
        assert count_texts([row["reviser_reply"]], row["model"]) == [row["usage"]["completion_tokens"]]


def test_a_cut_prompt_is_told_from_other_tokenizers() -> None:
    english = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 1000}]
    ours = count_requests([english], "m")[0]
    assert was_cut(english, 4096, "m")
    assert not was_cut(english, ours, "m")
    assert not was_cut(english, int(ours * 0.95), "m")
    assert not was_cut(english, int(ours * 1.3), "m")
    assert not was_cut(english, None, "m")
    assert not was_cut(english, 10, "m"), "what no context is as short as says nothing"
    chinese = [{"role": "user", "content": "快速的棕色狐狸跳过了懒狗。" * 1000}]
    ours = count_requests([chinese], "m")[0]
    assert not was_cut(chinese, int(ours * 0.7), "m"), "a vocabulary made for the script"
    assert was_cut(chinese, int(ours * 0.3), "m")
    assert not was_cut([{"role": "user", "content": "short"}], 300, "m")
