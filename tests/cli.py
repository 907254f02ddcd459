"""Running the command as a user does: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loopback import Loopback

ROOT = Path(__file__).resolve().parent.parent

COMMAND = [sys.executable, "-m", "clair_apo.cli"]


def environment(**more: str) -> dict[str, str]:
    own = ("OPENAI_", "ANTHROPIC_", "CLAIR_APO_DEBUG")
    return {**{k: v for k, v in os.environ.items() if not k.startswith(own)}, **more}


def clair(
    *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `clair-apo` to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(**(env or {})),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def build(
    input: Path,
    output: Path,
    *arguments: object,
    status: int = 0,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Runs build-pairs with `--json` and returns the summary (nothing where it does not end well)."""
    done = clair("build-pairs", "--input", input, "--output", output, "--json", *arguments, env=env)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def failures(output: Path) -> list[dict[str, Any]]:
    return rows(output.with_name(output.name.split(".")[0] + ".failures.parquet"))


def dropped(output: Path) -> list[dict[str, Any]]:
    return rows(output.with_name(output.name.split(".")[0] + ".dropped.parquet"))


def write_prompts(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def asks(server: Loopback, *more: object) -> list[object]:
    return ["--reviser", "m", "--reviser-url", server.url, *more]


def texts(path: Path) -> list[tuple[Any, ...]]:
    """What must not hang on how a run was interrupted."""
    return [(row["id"], row["prompt"], row["chosen"], row["rejected"]) for row in rows(path)]
