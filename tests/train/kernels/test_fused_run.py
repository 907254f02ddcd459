"""A whole run by kernels, in Triton's interpreter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clair_apo import train_model
from trl_step import WORDS, tiny_model


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_model(tmp_path / "model")
    rows = [
        {"prompt": WORDS[5 + i], "chosen": f"{WORDS[7 + i]} {WORDS[6]}", "rejected": f"{WORDS[7 + i]} 2"}
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    return {
        "model": str(tmp_path / "model"),
        "pairs": str(tmp_path / "pairs.parquet"),
        "batch_size": 2,
        "learning_rate": 1e-2,
        "tokens_per_microbatch": 60,
        "activation_budget": 20,
        "save_steps": 1,
        "save_total_limit": 9,
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_fused_run_is_the_plain_one_and_goes_on_bit_by_bit(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused, plain = tmp_path / "fused", tmp_path / "plain"
    train_model(**given, output_dir=str(fused), kernels="fused")
    assert "fused: 3 RMSNorm, 1 SwiGLU, 1 RoPE" in capsys.readouterr().err
    train_model(**given, output_dir=str(plain), kernels="plain", quiet=True)
    first, second = metrics(fused), metrics(plain)
    assert len(first) == len(second) == 2
    for a, b in zip(first, second, strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (name, a["step"])
    whole = load_file(fused / "model.safetensors")
    assert whole.keys() == load_file(plain / "model.safetensors").keys()

    shutil.rmtree(fused / "checkpoints" / "step-00000002")
    train_model(**given, output_dir=str(fused), kernels="fused", resume=True, quiet=True)
    again = load_file(fused / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    for a, b in zip(first, metrics(fused), strict=True):
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])
