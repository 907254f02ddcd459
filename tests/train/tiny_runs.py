"""Pairs and settings of runs that take a moment, and what such runs leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from trl_step import WORDS

FLAGS: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "tokens_per_microbatch": 60, "quiet": True}


def write_pairs(path: Path) -> Path:
    """18 pairs of random words; what both answers begin with is as long as may be."""
    rng = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(WORDS[int(i)] for i in torch.randint(5, len(WORDS), (count,), generator=rng))

    rows = []
    for i in range(18):
        both = words(i % 4)
        prompt, chosen, rejected = words(2 + i % 5), words(1 + i % 7), words(2 + i % 6)
        rows.append({"prompt": prompt, "chosen": f"{both} {chosen} 1", "rejected": f"{both} {rejected} 2"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def arguments(model: Path, pairs: Path, folder: Path) -> list[str]:
    """The settings as a command line."""
    given = {"model": model, "pairs": pairs, "output_dir": folder, **FLAGS}
    return [
        word
        for name, value in given.items()
        for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)]))
    ]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_near(a: Path, b: Path, tolerance: float) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=tolerance, msg=name)
