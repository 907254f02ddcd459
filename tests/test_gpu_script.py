"""The script for a GPU, tried on a CPU at small shapes: its cheap parts, its JSON and its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "run.sh"
pytest.importorskip("triton", reason="kernels are tried in Triton's interpreter")


def run(folder: Path, parts: str, **others: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs these parts; returns what they wrote, by part."""
    given = {"DEVICE": "cpu", "SMALL": "1", "PARTS": parts, "OUT": str(folder), "PYTHON": sys.executable}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **given, **others}
    done = subprocess.run(["sh", str(SCRIPT)], env=environment, capture_output=True, text=True)
    return done, {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_cheap_parts_and_the_page(tmp_path: Path) -> None:
    done, found = run(tmp_path, "head attention optimiser")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(found) == {"head", "attention", "optimiser"}
    for part in found.values():
        assert not [check for check in part["checks"] if check["state"] == "failed"]
        assert part["figures"]
    who = {figure["who"] for figure in found["head"]["figures"]}
    assert {"ours: fused, pairs", "ours: fused, tokens", "torch: F.linear_cross_entropy"} <= who
    (page,) = tmp_path.glob("gpu-*.md")
    text = page.read_text()
    assert "no figure here says anything about speed" in text
    assert "| forward and backward | ours: fused, pairs |" in text
    assert "Liger" in text  # as a figure or as missing


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    """Here by what it needs and has not: a CUDA device; and a part that there is none of."""
    done, found = run(tmp_path, "nothing attention", DEVICE="cuda", PEERS="0", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert [check["state"] for check in found["nothing"]["checks"]] == ["failed"]
    assert [check["state"] for check in found["attention"]["checks"]] == ["missing"]
    (page,) = tmp_path.glob("gpu-*.md")
    assert "## Failed: 1" in page.read_text()


def test_a_part_that_is_killed_leaves_what_it_had_found(tmp_path: Path) -> None:
    code = """
import os, signal
from common import part
with part("slow") as found:
    found.figure("time", "ours", 1.5, "ms")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "DEVICE": "cpu", "OUT": str(tmp_path), "PYTHONPATH": str(SCRIPT.parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    found = json.loads((tmp_path / "slow.json").read_text())
    assert [figure["value"] for figure in found["figures"]] == [1.5]
    assert [check["detail"] for check in found["checks"]] == ["ended before it was done"]
