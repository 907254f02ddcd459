"""What the parts have in common: the device, how long to take, timing, and what a part writes.

A part is a file with a `main`. It notes checks (passed, failed, missing) and figures, and writes them as
JSON as they come, so that one failure, or the end of its time, leaves the rest. `DEVICE=cpu SMALL=1` runs
every part at small shapes, kernels in Triton's interpreter: that shows that the script works and says
nothing of speed.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
GIB = 1 << 30
DEVICE = os.environ.get("DEVICE", "cuda")
SMALL = os.environ.get("SMALL", "0") == "1"
QUICK = os.environ.get("QUICK", "0") == "1"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported by anyone

# The shapes of Llama-3-8B, and small ones for a CPU.
HIDDEN, VOCABULARY, ROWS = (64, 517, 96) if SMALL else (4096, 128_256, 8192)
MLP, HEADS, KEY_HEADS, LAYERS = (96, 4, 2, 2) if SMALL else (14_336, 32, 8, 32)
TOKENS = 192 if SMALL else 4096
REPEATS = 1 if SMALL else 5 if QUICK else 20


@dataclass(frozen=True, slots=True)
class Check:
    """`state`: passed, failed, or missing (what it needs is not here)."""

    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """`goal`: ("<=" or ">=", value), where there is one; `who`: ours, or the peer."""

    name: str
    who: str
    value: float
    unit: str
    goal: tuple[str, float] | None = None


@dataclass
class Part:
    """What one part found."""

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def write(self, *, ended: bool) -> None:
        """To $OUT/NAME.json. What has not ended says so: it may be killed at any time."""
        found = {**asdict(self), "seconds": time.monotonic() - BEGAN}
        if not ended:
            found["checks"].append(asdict(Check(self.name, "failed", "ended before it was done")))
        folder = Path(os.environ.get("OUT", "."))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**found, **where()}, indent=1))
        temporary.replace(path)

    def check(self, name: str, run: Callable[[], object]) -> None:
        """Runs one check; it passes if nothing is raised, and what it returns is shown."""
        try:
            said = run()
            self._note(name, "passed", str(said or ""))
        except Missing as error:
            self._note(name, "missing", str(error))
        except Exception as error:
            traceback.print_exc(limit=4)
            self._note(name, "failed", f"{type(error).__name__}: {error}"[:400])
        free()

    def figure(
        self, name: str, who: str, value: float, unit: str, goal: tuple[str, float] | None = None
    ) -> None:
        self.figures.append(Figure(name, who, value, unit, goal))
        print(f"  {name:44} {who:24} {value:12,.3f} {unit}", flush=True)
        self.write(ended=False)

    def peer(self, name: str, who: str, run: Callable[[], None]) -> None:
        """Runs a measurement that notes its own figures; what it lacks, or how it fails, is noted."""
        try:
            run()
        except Missing as error:
            self._note(f"{name}: {who}", "missing", str(error))
        except Exception as error:
            state = "failed" if who.startswith("ours") else "missing"
            self._note(f"{name}: {who}", state, f"{type(error).__name__}: {error}"[:400])
        free()

    def _note(self, name: str, state: str, detail: str) -> None:
        self.checks.append(Check(name, state, detail))
        print(f"  {state:8} {name}{': ' + detail if detail else ''}", flush=True)
        self.write(ended=False)


class Missing(Exception):
    """What a check or a peer needs is not on this machine."""


@contextmanager
def part(name: str) -> Iterator[Part]:
    """Writes what was found to $OUT/NAME.json, whatever happens within. Exits with 1 if something
    failed."""
    found = Part(name)
    try:
        if DEVICE == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise Missing("no CUDA device is visible; DEVICE=cpu SMALL=1 tries the script on a CPU")
        yield found
    except Missing as error:
        found._note(name, "missing", str(error))
    except Exception as error:
        traceback.print_exc()
        found._note(name, "failed", f"{type(error).__name__}: {error}"[:400])
    found.write(ended=True)
    sys.exit(any(check.state == "failed" for check in found.checks))


def where() -> dict[str, Any]:
    """The device and how the part was sized."""
    import torch

    name = torch.cuda.get_device_name() if DEVICE == "cuda" and torch.cuda.is_available() else DEVICE
    return {"device": name, "small": SMALL, "quick": QUICK}


def needs(module: str, pip: str = "") -> Any:
    """The module; Missing if a peer is not here. A module of ours has to be."""
    import importlib

    if module.startswith("clair_apo."):
        return importlib.import_module(module)
    try:
        return importlib.import_module(module)
    except Exception as error:  # a peer that breaks while it is imported is missing too
        raise Missing(f"{pip or module} cannot be imported: {error}"[:200]) from error


def synchronise() -> None:
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Gives what the last measurement held back."""
    import gc

    import torch

    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def milliseconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median of `repeats` runs after two that warm up; on CUDA by events, the L2 cache overwritten
    before each."""
    import torch

    for _ in range(1 if SMALL else 2):
        run()
    synchronise()
    times = []
    cache = torch.empty(256 << 20, dtype=torch.int8, device="cuda") if DEVICE == "cuda" else None
    for _ in range(repeats):
        if cache is None:
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
            continue
        cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def extra_gib(run: Callable[[], object]) -> float:
    """GiB of the GPU that one run holds at its peak beyond what there was before."""
    import torch

    free()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def close(name: str, found: Any, expected: Any, relative: float) -> str:
    """Raises AssertionError where ||found - expected|| > relative * ||expected||, in float64; returns the
    ratio."""
    import torch

    found, expected = (torch.as_tensor(x).detach().double().cpu() for x in (found, expected))
    if not torch.isfinite(found[torch.isfinite(expected)]).all():
        raise AssertionError(f"{name}: not finite where it should be")
    ratio = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    if not ratio <= relative:
        raise AssertionError(f"{name}: off by {ratio:.2e} of its norm, {relative:g} are allowed")
    return f"{name} {ratio:.1e}"
