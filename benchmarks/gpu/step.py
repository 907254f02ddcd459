"""One training step on the device against the CPU's plain path, and a run that is killed and goes on.

SmolLM2 on pairs as they come. In float32 the device must agree closely; in bf16, with references of its
own, the first loss of APO is 1 within 0.05, and log-probabilities agree within bf16's rounding. A run
that is killed after a checkpoint and resumed must end with the bits of one that was not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import DEVICE, QUICK, SMALL, close, part
from inputs import pairs_file, small_model

STEPS, BATCH = (4, 4) if SMALL or QUICK else (6, 8)


def main() -> None:
    with part("step") as found, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pairs = small_model(folder), pairs_file(folder, STEPS * BATCH)
        run = Runs(model, pairs, folder)
        found.check("float32: a step equals the CPU's plain path", run.float32)
        found.check("bf16: the first loss is 1 within 0.05", run.first_loss)
        found.check("bf16: log-probabilities within 1% of the CPU's", run.bf16)
        found.check("killed and resumed: the same bits", lambda: resumed(run))


class Runs:
    def __init__(self, model: Path, pairs: Path, folder: Path) -> None:
        self.model, self.pairs, self.folder = model, pairs, folder
        self._known: dict[str, list[dict[str, Any]]] = {}

    def command(self, name: str, *flags: str) -> list[str]:
        out = str(self.folder / name)
        words = ["--model", self.model, "--pairs", self.pairs, "--output-dir", out, "--batch-size", BATCH]
        words += ["--learning-rate", "1e-5", "--seed", "0", "--quiet", *flags]
        return [sys.executable, "-m", "clair_apo.train", *map(str, words)]

    def environment(self, name: str, device: str = DEVICE) -> dict[str, str]:
        # Each run finds its references itself.
        found = {**os.environ, "XDG_CACHE_HOME": str(self.folder / f"cache-{name}")}
        return (
            {**found, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
            if device == "cpu"
            else found
        )

    def log(self, name: str, device: str, *flags: str) -> list[dict[str, Any]]:
        """What a run measured, step by step; each is run once."""
        if name not in self._known:
            command = self.command(name, "--max-steps", "2", *flags)
            done = subprocess.run(
                command, env=self.environment(name, device), capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr.strip()[-300:]}")
            self._known[name] = metrics(self.folder / name)
        return self._known[name]

    def cpu(self) -> list[dict[str, Any]]:
        return self.log("cpu", "cpu", "--dtype", "float32", "--attention", "plain")

    def float32(self) -> str:
        return compare(self.log("float32", DEVICE, "--dtype", "float32"), self.cpu(), 1e-3)

    def bf16(self) -> str:
        # The first step alone: from there on each run has weights of its own.
        return compare(
            self.log("bf16", DEVICE)[:1], self.cpu()[:1], 1e-2, ("logps/chosen", "logps/rejected")
        )

    def first_loss(self) -> str:
        loss = self.log("bf16", DEVICE)[0]["loss"]
        assert abs(loss - 1) <= 0.05, f"the first loss is {loss}"
        return f"{loss:.6f}"


def compare(
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    relative: float,
    names: tuple[str, ...] = ("loss", "grad_norm", "logps/chosen", "logps/rejected"),
) -> str:
    return ", ".join(close(n, [e[n] for e in ours], [e[n] for e in theirs], relative) for n in names)


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def resumed(run: Runs) -> str:
    """A run of STEPS steps, and one that is killed as soon as its second step is saved."""
    flags = ("--max-steps", str(STEPS), "--save-steps", "1")
    subprocess.run(
        run.command("whole", *flags), env=run.environment("whole"), check=True, capture_output=True
    )
    killed = subprocess.Popen(
        run.command("killed", *flags), env=run.environment("killed"), stderr=subprocess.DEVNULL
    )
    checkpoints = run.folder / "killed" / "checkpoints"
    try:
        while killed.poll() is None and not any(checkpoints.glob("step-0*[2-9]/state.json")):
            time.sleep(0.02)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    reached = len(metrics(run.folder / "killed"))
    # One that failed by itself, or was faster than the kill, would end with the same bits too.
    assert 2 <= reached < STEPS, f"it was to be killed after step 2, and had logged {reached} of {STEPS}"
    subprocess.run(
        [*run.command("killed", *flags), "--resume"],
        env=run.environment("killed"),
        check=True,
        capture_output=True,
    )
    whole, again = (weights(run.folder / name) for name in ("whole", "killed"))
    different = [name for name in whole if not bool((whole[name] == again[name]).all())]
    assert whole.keys() == again.keys(), "the models have other tensors"
    assert not different, f"{len(different)} of {len(whole)} tensors differ, {different[0]} among them"
    return f"killed after step {reached} of {STEPS}"


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


if __name__ == "__main__":
    main()
