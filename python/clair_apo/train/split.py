"""Float32-grade training of bf16 weights: the lower halves of the weights beside them, moments in 8 bits.

A float32 model is split once (`split_weights`): its parameters become bf16, which is what runs, and what
they lost goes to the optimiser as 16 bits a weight. Both together are the exact float32 weights, so updates
far smaller than a bf16 step add up as they do in float32. The formats are those of `kernels/optimiser`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from clair_apo.train.kernels.optimiser import naive
from clair_apo.train.kernels.optimiser.naive import Moments, Rule

# Parameters of fewer numbers, and vectors, keep float32 moments: they are a thousandth of a model.
SMALL = 4096


def split_weights(model: nn.Module) -> dict[str, Tensor]:
    """Turns the float32 parameters of `model` into bf16, in place; buffers stay as they are.

    Returns: what is missing to the float32 ones, int16 of the same shape on the same device, by name as
    `named_parameters` gives them (tied ones once). A parameter whose numbers are bf16 ones lacks nothing,
    and is left out.
    """
    lost = {}
    for name, parameter in model.named_parameters():
        parameter.data, low = naive.split(parameter.data)
        if low.any():
            lost[name] = low
    return lost


class SplitOptimizer(torch.optim.Optimizer):
    """AdamW as torch's (decoupled weight decay), or RMSprop as torch's (no momentum), over bf16 parameters.

    `named`: the trained parameters, plain or sharded by rows over a mesh of one dimension (FSDP2); `low`:
    what `split_weights` returned, under the same names, sharded as they are. `kind`: "adamw" or "rmsprop",
    which smoothes by the second beta. `coded`: moments in 8 bits; else in float32. `fused`: by Triton.

    Its state is made at once: `low`, `exp_avg`, `exp_avg_sq` of the parameter's own shape and sharding,
    `exponents` [rows, blocks] sharded alike, `step`. Blocks lie within rows, and roundings hang on a
    number's place in the whole parameter, so a checkpoint goes on in any number of processes. Weight decay
    spares vectors.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        low: Mapping[str, Tensor],
        *,
        kind: str,
        rate: float,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        coded: bool = True,
        fused: bool = False,
    ) -> None:
        trained = dict(named)
        defaults = {"lr": rate, "betas": betas, "eps": epsilon}
        groups = [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], defaults)
        self._adamw = kind == "adamw"
        self._pass = _fused() if fused else naive.step
        for name, parameter in trained.items():
            self.state[parameter] = self._new_state(parameter, low.get(name), coded)

    def _new_state(self, parameter: nn.Parameter, low: Tensor | None, coded: bool) -> dict[str, Tensor]:
        state = {"step": torch.zeros(()), "low": torch.zeros_like(parameter.data, dtype=torch.int16)}
        if low is not None:
            _local(state["low"]).copy_(_local(low))
        coded = coded and parameter.ndim > 1 and parameter.numel() >= SMALL
        if self._adamw:
            kind = torch.int8 if coded else torch.float32
            state["exp_avg"] = torch.zeros_like(parameter.data, dtype=kind)
        kind = torch.uint8 if coded else torch.float32
        state["exp_avg_sq"] = torch.zeros_like(parameter.data, dtype=kind)
        if coded:
            state["exponents"] = _exponents(parameter.data)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, scale: Tensor | None = None) -> None:  # type: ignore[override]
        """`scale`: what gradients are multiplied with, float32 without dimensions on their device."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group, scale)

    def _step(self, parameter: nn.Parameter, group: Mapping[str, Any], scale: Tensor | None) -> None:
        state = self.state[parameter]
        state["step"] += 1
        weight = _local(parameter.data)
        if scale is None:
            scale = torch.ones((), device=weight.device)
        first = rows_of(parameter, parameter.shape[0]).start if parameter.ndim else 0

        def table(name: str) -> Tensor | None:
            return _table(_local(state[name])) if name in state else None

        square = table("exp_avg_sq")
        assert square is not None
        self._pass(
            _table(weight),
            _table(_local(state["low"])),
            _table(_local(parameter.grad).contiguous()),  # type: ignore[arg-type]
            Moments(table("exp_avg"), square, table("exponents")),
            scale,
            Rule(
                adamw=self._adamw,
                step=int(state["step"]),
                rate=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                epsilon=group["eps"],
                weight_decay=group["weight_decay"],
            ),
            first,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copies a state of the same parameters into this one. (torch's own would turn codes into the
        parameter's dtype.)"""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                for name, value in self.state[parameter].items():
                    value.copy_(state_dict["state"][number][name])


def clipped_scale(parameters: Iterable[nn.Parameter], largest: float) -> tuple[Tensor, Tensor]:
    """The norm of all gradients, as torch's `get_total_norm` but in float32 whatever they are in, and what
    to multiply them with so that it is at most `largest`: float32 on their device; nobody waits for them.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(_local(grad), dtype=torch.float32) for grad in grads]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if isinstance(grads[0], DTensor):
        # Each process has rows of its own of every gradient.
        square = norm.square()
        torch.distributed.all_reduce(square, group=grads[0].device_mesh.get_group())
        norm = square.sqrt()
    return norm, (largest / (norm + 1e-6)).clamp(max=1.0)


def _fused() -> Callable[..., None]:
    from clair_apo.train.kernels.optimiser.fused import step

    return step


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _table(tensor: Tensor) -> Tensor:
    """A view [rows, columns]; vectors are one row."""
    return tensor.view(1, tensor.numel()) if tensor.ndim < 2 else tensor.flatten(1)


def rows_of(tensor: Tensor, rows: int) -> slice:
    """Which of `rows` rows of the whole this process holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return slice(0, rows)
    mesh, (placement,) = tensor.device_mesh, tensor.placements
    if not (isinstance(placement, Shard) and placement.dim == 0):
        raise ValueError(f"parameters are sharded by rows, not by {placement}")
    each = math.ceil(rows / mesh.size())
    first = min(rows, mesh.get_local_rank() * each)
    return slice(first, min(rows, first + each))


def _exponents(parameter: Tensor) -> Tensor:
    """Room for the exponents of a parameter's blocks, sharded by rows like it."""
    count = naive.blocks(math.prod(parameter.shape[1:]))
    local = _local(parameter)
    own = torch.zeros(local.shape[0], count, dtype=torch.uint8, device=local.device)
    if not isinstance(parameter, DTensor):
        return own
    return DTensor.from_local(
        own,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size((parameter.shape[0], count)),
        stride=(count, 1),
    )
