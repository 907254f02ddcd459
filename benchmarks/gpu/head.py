"""The head: time of a forward and backward pass, of a forward pass alone, and memory beside the gradients.

N rows, H hidden numbers, V tokens in bf16: 8192, 4096, 128,256, the shape of Llama-3-8B. Every contender
gets the same rows, weights and targets and gives the gradients of rows and weight of the same function of
per-token log-probabilities where it can, of their sum where it has only that. GEMM-only is the bound: the
three products of the pair-chunked form alone, by cuBLAS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import (
    DEVICE,
    GIB,
    HIDDEN,
    ROWS,
    VOCABULARY,
    Missing,
    Part,
    extra_gib,
    milliseconds,
    needs,
    part,
)


def main() -> None:
    with part("head") as found:
        measure(found)


def measure(found: Part) -> None:
    import torch

    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    hidden = torch.randn(ROWS, HIDDEN, device=DEVICE).to(dtype).requires_grad_()
    weight = (torch.randn(VOCABULARY, HIDDEN, device=DEVICE) / HIDDEN**0.5).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (ROWS,), device=DEVICE)
    coefficients = torch.randn(ROWS, device=DEVICE) / ROWS

    for who, build in CONTENDERS.items():

        def run(who: str = who, build: Callable[..., Callable[[], Any]] = build) -> None:
            step = build(hidden, weight, targets, coefficients)
            ours = who.startswith("ours: fused")
            time = milliseconds(lambda: both(step, hidden, weight))
            found.figure("forward and backward", who, time, "ms", ("<=", 40.0) if ours else None)
            if DEVICE == "cuda":
                # The gradients are what was asked for; the goal is about what comes on top.
                gradients = (hidden.numel() + weight.numel()) * hidden.element_size() / GIB
                extra = extra_gib(lambda: both(step, hidden, weight)) - gradients
                found.figure("beside the gradients", who, extra, "GiB", ("<=", 1.0) if ours else None)
            with torch.no_grad():
                if not who.startswith(("ours: fused, pairs", "ours: plain, pairs", "GEMM")):
                    goal = ("<=", 12.5) if ours else None
                    found.figure("forward alone", who, milliseconds(step), "ms", goal)

        found.peer("head", who, run)
        hidden.grad = weight.grad = None


def both(step: Callable[[], Any], hidden: Any, weight: Any) -> None:
    hidden.grad = weight.grad = None
    out = step()
    if out is not None:
        out.backward()


def plain_torch(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
    import torch.nn.functional as F

    return lambda: (
        -(F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none") * coefficients).sum()
    )


def gemms(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
    import torch

    rows = max(1, (256 << 20) // (2 * VOCABULARY))

    def run() -> None:
        with torch.no_grad():
            of_weight = torch.zeros_like(weight)
            for start in range(0, ROWS, rows):
                some = hidden[start : start + rows]
                logits = some @ weight.T
                logits @ weight
                of_weight.addmm_(logits.T, some)

    return run


def ours_tokens(fused: bool) -> Callable[..., Callable[[], Any]]:
    def build(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
        module = _head(fused)
        return lambda: (module.token_logps(hidden, weight, targets) * coefficients).sum()

    return build


def ours_pairs(fused: bool) -> Callable[..., Callable[[], Any]]:
    """Pairs of which each has an eighth of the rows, and a loss that is separable by pairs."""

    def build(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
        import torch

        from clair_apo.train.packing import Entries

        module = _head(fused)
        each = ROWS // 8
        entries = [Entries(i * each, each // 4, each // 4, each - each // 4 * 2) for i in range(8)]

        def losses(chosen: Any, rejected: Any, _: slice) -> Any:
            return torch.sigmoid(0.1 * (rejected - chosen) / each)

        return lambda: module.pair_losses(hidden, weight, targets, entries, losses)[0]

    return build


def _head(fused: bool) -> Any:
    if not fused:
        from clair_apo.train import head

        return head
    return needs("clair_apo.train.kernels.head.fused")


def torch_fused(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
    import torch
    import torch.nn.functional as F

    if not hasattr(F, "linear_cross_entropy"):
        raise Missing("this torch has no F.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda: (
        -(
            F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
            * coefficients
        ).sum()
    )


def liger(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
    loss = needs("liger_kernel.transformers", "liger-kernel").LigerFusedLinearCrossEntropyLoss(
        reduction="sum"
    )
    return lambda: loss(weight, hidden, targets)


def cut(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
    module = needs("cut_cross_entropy", "cut-cross-entropy")
    return lambda: (
        -(module.linear_cross_entropy(hidden, weight, targets, reduction="none") * coefficients).sum()
    )


def trl_chunked(hidden: Any, weight: Any, targets: Any, coefficients: Any) -> Callable[[], Any]:
    function = needs("trl.kernels.chunked_logprob", "trl").ChunkedLogProbFunction
    chunk = needs("trl.trainer.utils", "trl")._CHUNKED_LOGPROB_CHUNK_SIZE

    def run() -> Any:
        # The arguments of TRL 1.16: temperature, chunk, soft cap, scale, and no further outputs.
        logps = function.apply(hidden, weight, None, targets, 1.0, chunk, None, 1.0, ())[0]
        return (logps * coefficients).sum()

    return run


CONTENDERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "GEMM-only (6NHV)": gemms,
    "ours: fused, pairs": ours_pairs(True),
    "ours: fused, tokens": ours_tokens(True),
    "ours: plain, pairs": ours_pairs(False),
    "ours: plain, tokens": ours_tokens(False),
    "torch: F.linear_cross_entropy": torch_fused,
    "Liger": liger,
    "cut-cross-entropy": cut,
    "TRL's chunked": trl_chunked,
    "torch: logits": plain_torch,
}

if __name__ == "__main__":
    main()
