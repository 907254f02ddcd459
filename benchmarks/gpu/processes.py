"""Two processes, DDP and FSDP2, against one: the same losses and gradient norms step by step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import DEVICE, Missing, Part, part
from inputs import pairs_file, small_model
from step import Runs, compare, metrics


def main() -> None:
    with part("processes") as found:
        if DEVICE == "cuda":
            import torch

            if torch.cuda.device_count() < 2:
                raise Missing(f"needs two GPUs, and there is {torch.cuda.device_count()}")
        with tempfile.TemporaryDirectory() as name:
            check(found, Path(name))


def check(found: Part, folder: Path) -> None:
    run = Runs(small_model(folder), pairs_file(folder, 8), folder)
    flags = ("--dtype", "float32", "--attention", "plain")

    def several(sharding: str) -> str:
        words = run.command(sharding, "--max-steps", "2", "--sharding", sharding, *flags)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words[1:]]
        done = subprocess.run(
            [sys.executable, *launch], env=run.environment(sharding), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        return compare(metrics(folder / sharding), run.log("one", DEVICE, *flags), 1e-4)

    found.check("DDP over two processes equals one", lambda: several("ddp"))
    found.check("FSDP2 over two processes equals one", lambda: several("fsdp"))


if __name__ == "__main__":
    main()
