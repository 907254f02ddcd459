"""What each kernel takes of a GPU, found without one: `python -m clair_apo.train.kernels.resources`.

Every `SPECS` of this folder is compiled ahead of time for three generations, as it is launched at the
reference shape: pointers and sizes are multiples of 16 there, which Triton is told as it is at a launch.
Of each machine program: registers a thread, bytes of spilled registers (the stack), shared memory of a
program, how many programs fit a multiprocessor, and which matrix instructions it has.

The last column is a prediction, not a measurement: the share of the roofline, max(flops / peak, bytes /
bandwidth), that these resources allow.
- Kernels with products are bounded by the matrix units. Where one program fills a multiprocessor, they
  rest while it finishes a tile: share = main / (main + rest), in cycles, with main = 2 x ROWS x COLUMNS x
  4096 / (operations a cycle), and rest = instructions of the program x warps / 4, one for each of the four
  schedulers and cycle. Where several programs fit, they fill each other's gaps, and the share is 1.
- Other kernels are bounded by memory. By Little's law bandwidth x latency bytes have to be under way:
  share = under way / needed, at most 1, with under way = resident threads x bytes that a thread loads
  (loads in the program, each counted once).
Figures of A100 80 GB, H100 and B200, all SXM, from NVIDIA's data sheets (dense bf16, memory bandwidth) and
the limits from the CUDA programming guide's table of compute capabilities; latencies are rounded guesses.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

from clair_apo.train import kernels
from clair_apo.train.kernels.spec import Spec


@dataclass(frozen=True, slots=True)
class Generation:
    """A GPU: what limits a program, and what the roofline is made of."""

    name: str
    capability: int
    shared_kib: int  # a program may have
    multiprocessors: int
    operations: int  # of bf16 products, a cycle and multiprocessor
    peak: float  # of bf16 products, operations a second
    bandwidth: float  # bytes a second
    latency: float  # of memory, seconds
    matrix: str  # what the matrix instruction of its own is called in PTX


GENERATIONS = (
    Generation("A100", 80, 163, 108, 2048, 312e12, 2.04e12, 6e-7, "mma.sync"),
    Generation("H100", 90, 227, 132, 4096, 989e12, 3.35e12, 7e-7, "wgmma.mma_async"),
    Generation("B200", 100, 227, 148, 8192, 2250e12, 8.0e12, 8e-7, "tcgen05.mma"),
)
REGISTERS = 65536  # of a multiprocessor, in units of 256 for a warp
THREADS = 2048
PROGRAMS = 32
RESERVED_KIB = 1  # of shared memory, for each program
HIDDEN = 4096


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one kernel on one generation. `shared` is bytes, static and dynamic; `programs` how many fit a
    multiprocessor; `matrix` the matrix instructions that it has; `roofline_us` the time that products and
    bytes take at least, `share` the predicted share of it."""

    name: str
    gpu: str
    capability: int
    registers: int
    spilled: int
    shared: int
    shared_limit: int
    programs: int
    matrix: tuple[str, ...]
    instructions: int
    roofline_us: float
    share: float


def specs() -> Iterator[Spec]:
    """Those of all modules in this folder, by name once."""
    seen = set()
    for module in pkgutil.walk_packages(kernels.__path__, kernels.__name__ + "."):
        for spec in getattr(importlib.import_module(module.name), "SPECS", ()):
            if spec.name not in seen:
                seen.add(spec.name)
                yield spec


def resources(spec: Spec, gpu: Generation) -> Resources:
    """Compiles a kernel for a generation. Raises what Triton raises where it cannot."""
    compiled = _compiled(spec, gpu)
    usage, code = _machine_code(compiled.asm["cubin"])
    registers, spilled, static = (_number(usage, word) for word in ("REG", "STACK", "SHARED"))
    # On Hopper and later the system's own part is counted as static.
    static -= RESERVED_KIB * 1024 if gpu.capability >= 90 and static else 0
    shared = static + compiled.metadata.shared
    programs = _programs(spec, gpu, registers, shared)
    instructions = len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))
    multiplying = spec.flops / gpu.peak if spec.products else 0.0
    return Resources(
        name=spec.name,
        gpu=gpu.name,
        capability=gpu.capability,
        registers=registers,
        spilled=spilled,
        shared=shared,
        shared_limit=gpu.shared_kib * 1024,
        programs=programs,
        matrix=tuple(
            word
            for word in ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
            if re.search(rf"\b{re.escape(word)}\b", compiled.asm["ptx"])
        ),
        instructions=instructions,
        roofline_us=1e6 * max(multiplying, spec.bytes / gpu.bandwidth),
        share=_share(spec, gpu, programs, instructions, code),
    )


def _compiled(spec: Spec, gpu: Generation) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    signature, constants = dict(spec.signature), dict(spec.constants)
    if gpu.capability < 90 and constants.get("TMA"):
        # Kernels with this constant take pointers where the hardware has no tensor descriptors.
        constants["TMA"] = False
        for name, kind in signature.items():
            signature[name] = re.sub(r"tensordesc<(\w+)\[.*", r"*\1", kind)
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, kind in enumerate(signature.values())
        if kind.startswith("*") or kind in ("i32", "i64")
    }
    source = triton.compiler.ASTSource(
        fn=spec.kernel, signature=signature, constexprs=constants, attrs=aligned
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(
            source,
            target=GPUTarget("cuda", gpu.capability, 32),
            options={"num_warps": spec.num_warps, "num_stages": spec.num_stages},
        )


def _machine_code(cubin: bytes) -> tuple[str, str]:
    """What a machine program uses, and its instructions."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tuple(
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, flag, file.name], check=True, capture_output=True, text=True
            ).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )  # type: ignore[return-value]


def _number(usage: str, word: str) -> int:
    found = re.search(rf"\b{word}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of {word}: {usage!r}")
    return int(found[1])


def _programs(spec: Spec, gpu: Generation, registers: int, shared: int) -> int:
    """How many programs fit a multiprocessor."""
    a_warp = -(-registers * 32 // 256) * 256
    return min(
        REGISTERS // (a_warp * spec.num_warps),
        (gpu.shared_kib + RESERVED_KIB) * 1024 // (shared + RESERVED_KIB * 1024),
        THREADS // (32 * spec.num_warps),
        PROGRAMS,
    )


def _share(spec: Spec, gpu: Generation, programs: int, instructions: int, code: str) -> float:
    """The predicted share of the roofline, as at the top of this file."""
    if spec.products:
        if programs > 1:
            return 1.0
        main = 2 * spec.constants["ROWS"] * spec.constants["COLUMNS"] * HIDDEN / gpu.operations
        return float(main / (main + instructions * spec.num_warps / 4))
    loads = re.findall(r"\bLDG\.E((?:\.\w+)*)", code)
    under_way = programs * 32 * spec.num_warps * sum(map(_width, loads))
    return min(1.0, under_way * gpu.multiprocessors / (gpu.bandwidth * gpu.latency))


def _width(modifiers: str) -> int:
    """Bytes that a load of these modifiers takes for a thread."""
    for word, width in ((".256", 32), (".128", 16), (".64", 8), ("16", 2), ("8", 1)):
        if word in modifiers:
            return width
    return 4


def all_resources() -> list[Resources]:
    """Every kernel on every generation, compiled by as many processes as there are cores."""
    wanted = [(spec.name, gpu) for spec in specs() for gpu in GENERATIONS]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        return list(pool.map(_named, *zip(*wanted, strict=True)))


def _named(name: str, gpu: Generation) -> Resources:
    return resources(next(spec for spec in specs() if spec.name == name), gpu)


def table(rows: list[Resources]) -> str:
    """For a terminal."""
    heads = (
        "kernel",
        "gpu",
        "registers",
        "spilled",
        "shared KiB",
        "of",
        "programs",
        "matrix",
        "roofline",
        "share",
    )
    lines = [
        (
            row.name,
            f"{row.gpu} sm_{row.capability}",
            str(row.registers),
            f"{row.spilled} B",
            f"{row.shared / 1024:.0f}",
            f"{row.shared_limit // 1024}",
            str(row.programs),
            " ".join(row.matrix) or "-",
            f"{row.roofline_us:,.0f} us",
            f"{row.share:.0%}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (heads, *lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clair_apo.train.kernels.resources",
        description="Compile every kernel for three generations of GPUs, and say what it takes.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    if not kernels.installed() or kernels.interpreted():
        sys.exit("Triton is not installed, or TRITON_INTERPRET is set: nothing can be compiled")
    rows = all_resources()
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))
        print("\nshare: of the roofline, predicted from these resources and not measured")


if __name__ == "__main__":
    main()
