"""A plan of memory as text."""

from __future__ import annotations

from clair_apo.terminal import one_line
from clair_apo.train.memory.account import GIB
from clair_apo.train.memory.plan import MemoryPlan


def text(plan: MemoryPlan) -> str:
    """For a terminal: what lives at once, what it is made of, and what was picked."""
    standing, choice = plan.standing, plan.choice
    lines = [
        f"{one_line(plan.model)}: {plan.parameters.total / 1e9:.2f}B parameters, "
        f"{_trained(plan)}, {plan.held}, {plan.kernels} kernels; {_processes(plan)}",
        "",
        _line("weights", standing.weights),
        _line("low bits", standing.low_bits),
        _line("gradients", standing.gradients),
        _line("moments of the optimiser", standing.moments),
        _line("a reference in memory", standing.reference),
        _line("gathered by FSDP around the layers", standing.gathered),
        _line("buckets of DDP", standing.buckets),
        _line("workspace of cuBLAS", standing.workspace),
    ]
    if choice is not None:
        moment, twice = choice.moment, plan.layers - choice.kept_layers
        lines += [
            _line(f"activations of {choice.kept_layers} of {plan.layers} layers", moment.kept),
            _line(f"inputs of {twice} layers that run twice", moment.inputs),
            _line("activations around the layers", moment.outside),
            _line(
                "head, or backward pass and gathered layers"
                if plan.spread.sharded
                else "head's chunk and gradients, or backward pass",
                moment.transient,
            ),
        ]
    else:
        lines.append(_line("the longest pair, every layer run twice", plan.least - standing.total))
    said = [line for line in lines if line is not None]
    said += [
        f"{'':46}------",
        _sum("at the peak", plan.peak),
        _sum("there is", plan.room.size, plan.room.source),
    ]
    if choice is not None:
        said += ["", *_picked(plan)]
    said += ["", *_kept(plan)]
    return "\n".join(said)


def _picked(plan: MemoryPlan) -> list[str]:
    choice = plan.choice
    assert choice is not None
    said = f"--tokens-per-microbatch {choice.tokens} --activation-budget {choice.budget}"
    if choice.kept_layers == plan.layers:
        return [f"{said}: no layer runs twice"]
    return [
        f"{said}: {plan.layers - choice.kept_layers} of {plan.layers} layers run twice in a full microbatch"
    ]


def _kept(plan: MemoryPlan) -> list[str]:
    """What the last layer keeps, in hidden numbers of 2 bytes, the unit of the literature."""
    unit = 2 * plan.hidden
    rows = [
        f"  {one_line(part.part, 28):28} {part.tensors:3} {part.dtype:10} "
        f"{part.size:10,.0f} {part.size / unit:8.2f} h"
        for part in plan.parts
    ]
    whole = sum(part.size for part in plan.parts)
    return [
        f"kept by one layer of a token, tensors and bytes (h: {plan.hidden:,} numbers of 2 bytes):",
        *rows,
        f"  {'':28} {'':3} {'':10} {whole:10,.0f} {whole / unit:8.2f} h",
    ]


def _trained(plan: MemoryPlan) -> str:
    trained = plan.parameters.trained
    return "all trained" if trained == plan.parameters.total else f"{trained / 1e6:.1f}M trained"


def _processes(plan: MemoryPlan) -> str:
    count = plan.spread.processes
    if count == 1:
        return "GiB of one process"
    return f"GiB of each of {count} processes, " + (
        "weights spread (FSDP)" if plan.spread.sharded else "DDP"
    )


def _line(name: str, size: int) -> str | None:
    return _sum(name, size) if size else None


def _sum(name: str, size: int, remark: str = "") -> str:
    return f"  {name:44}{size / GIB:6.2f}" + (f"   {one_line(remark)}" if remark else "")
