"""The results of one run as a dated page: what passed, what failed, what is missing, figures beside their
peers.

python benchmarks/gpu/page.py OUT FOLDER      reads OUT/*.json, writes FOLDER/gpu-DATE.md
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ORDER = ("correctness", "step", "head", "attention", "optimiser", "model", "processes")
PACKAGES = (
    "clair-apo",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "trl",
    "liger-kernel",
    "cut-cross-entropy",
)


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    parts = [json.loads(path.read_text()) for path in source.glob("*.json")]
    parts.sort(key=lambda p: ORDER.index(p["name"]) if p["name"] in ORDER else len(ORDER))
    now = datetime.now(UTC)
    small = any(p.get("small") for p in parts)
    # A trial on a CPU is no result.
    path = (source if small else target) / f"gpu-{now:%Y-%m-%d-%H%M}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(parts, now, small))
    print(path)


def page(parts: list[dict[str, Any]], now: datetime, small: bool) -> str:
    lines = [f"# GPU run of {now:%Y-%m-%d %H:%M} UTC", "", *machine(), ""]
    if small:
        lines += ["**Small shapes, to try the script: no figure here says anything about speed.**", ""]
    elif any(p.get("quick") for p in parts):
        lines += ["Sized for about ten minutes (`QUICK=1`): fewer repeats and steps.", ""]
    for state in ("failed", "missing"):
        found = [(p["name"], c) for p in parts for c in p["checks"] if c["state"] == state]
        lines += [f"## {state.capitalize()}: {len(found)}", ""]
        lines += [f"- {name}: {cell(c['name'])}: {cell(c['detail'])}" for name, c in found]
        lines += [""]
    for found in parts:
        lines += [f"## {found['name']} ({found['seconds']:.0f} s)", ""]
        passed = [c for c in found["checks"] if c["state"] == "passed"]
        lines += [
            f"- passed: {cell(c['name'])}{': ' + cell(c['detail']) if c['detail'] else ''}" for c in passed
        ]
        if found["figures"]:
            lines += ["", "| measured | who | figure | goal | |", "|---|---|---:|---|---|"]
            lines += [row(figure) for figure in found["figures"]]
        lines += [""]
    return "\n".join(lines)


def row(figure: dict[str, Any]) -> str:
    goal, met = "", ""
    if figure["goal"]:
        sign, bound = figure["goal"]
        reached = figure["value"] <= bound if sign == "<=" else figure["value"] >= bound
        goal, met = f"{sign} {bound:,g}", "reached" if reached else "not reached"
    value = f"{figure['value']:,.3g}" if abs(figure["value"]) < 1000 else f"{figure['value']:,.0f}"
    return f"| {cell(figure['name'])} | {cell(figure['who'])} | {value} {figure['unit']} | {goal} | {met} |"


def cell(text: str) -> str:
    """Text of errors in a line of Markdown."""
    return " ".join(text.split()).replace("|", "/").replace("<", "&lt;").replace("`", "'")


def machine() -> list[str]:
    """Hardware, driver and versions."""
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    try:
        found = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        gpus = found.stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        gpus = []
    lines = [f"- GPU: {gpu}" for gpu in gpus] or ["- GPU: none"]
    lines.append(f"- {platform.platform()}, Python {platform.python_version()}")
    versions = [f"{name} {known(name)}" for name in PACKAGES]
    try:
        import torch

        versions.append(f"CUDA {torch.version.cuda}")
    except ImportError:
        pass
    return [*lines, f"- {', '.join(versions)}"]


def known(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


if __name__ == "__main__":
    main()
