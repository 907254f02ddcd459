"""Tiny random models of each family, and pairs of random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY = 97

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 64},
    "Cohere": {"logit_scale": 0.0625},
    "Granite": {"logits_scaling": 2.0},
}


@dataclass
class Pair:
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def tiny_model(family: str, **changes: Any) -> Any:
    """A causal language model with three layers of 64 numbers, float32."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "attn_implementation": "eager",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **FAMILIES.get(family, {}),
            **changes,
        }
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    # Random weights of the usual size say nothing clearly: every token would be about as likely.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_pair(rng: np.random.Generator, prompt: int, shared: int, chosen: int, rejected: int) -> Pair:
    """A pair of answers with `shared` tokens in common at their beginning."""

    def draw(count: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, count).astype(np.int32)

    both = draw(shared)
    own, other = draw(chosen), draw(rejected)
    if chosen and rejected and own[0] == other[0]:
        other[0] = 3 if own[0] != 3 else 4
    return Pair(draw(prompt), np.concatenate([both, own]), np.concatenate([both, other]))


def some_pairs() -> list[Pair]:
    rng = np.random.default_rng(0)
    shapes = [(5, 3, 4, 6), (1, 0, 7, 2), (9, 4, 1, 1), (4, 5, 0, 3), (3, 0, 6, 0), (2, 0, 0, 5)]
    return [random_pair(rng, *shape) for shape in shapes]
