"""The layers of this folder in a model of transformers, each behind a check that it is the module's equal.

They come in two makes: kernels (`norm.py`, `rope.py`, `swiglu.py`), and PyTorch that keeps less
(`lean.py`).
No class is known by name. A module that looks like an RMSNorm, a gated MLP or an attention with rotary
positions runs over a few random rows, as it is and by the kernel; where values and gradients agree, the
module gets a `forward` of its own, and where they do not, it stays and is counted. Only the instance
changes: classes, state dict, hooks and adapters are as they were, and so is what is saved.

Attention calls a function of its module file, `apply_rotary_pos_emb`, which in transformers only the
package `kernels` can replace, with downloads from the Hub. So an attention module gets a copy of the
`forward` of its class for which that one name means the kernel.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake, unset_fake_temporarily

from clair_apo.train.kernels.layers import naive
from clair_apo.train.kernels.layers.naive import ACTIVATIONS, GEMMA, LLAMA, OLMO2, NormForm

NORM, GATE, ROPE = "RMSNorm", "SwiGLU", "RoPE"
ROTARY = "apply_rotary_pos_emb"
# Rows of a check, and by how many roundings of the largest number a kernel may differ from the module.
ROWS = 3
ROUNDINGS = 4
# Float32 sums of thousands of products differ by their order.
FLOAT_TOLERANCE = 1e-5


class Layers(NamedTuple):
    """One make of the layers, each as in `naive.py`; norms up to `widest` numbers."""

    name: str
    rms_norm: Callable[..., Tensor]
    gated: Callable[..., Tensor]
    rotate: Callable[..., tuple[Tensor, Tensor]]
    widest: int


def fused() -> Layers:
    """Kernels in Triton."""
    from clair_apo.train.kernels.layers import norm, rope, swiglu

    return Layers("fused", norm.rms_norm, swiglu.gated, rope.rotate, norm.WIDEST)


def lean() -> Layers:
    """PyTorch that keeps its inputs only."""
    from clair_apo.train.kernels.layers import lean

    return Layers("lean", lean.rms_norm, lean.gated, lean.rotate, sys.maxsize)


def makes(name: str) -> Layers:
    """The make of that name, "fused" or "lean"."""
    return fused() if name == "fused" else lean()


@dataclass
class Installed:
    """What runs by which make: the modules with a `forward` of ours, how many of each kind, and how many of
    which class look alike but stay as they are."""

    name: str
    modules: list[nn.Module] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """One line for a person."""
        kinds = [f"{self.kinds[kind]} {kind}" for kind in (NORM, GATE, ROPE) if self.kinds[kind]]
        text = f"{self.name}: {', '.join(kinds) or 'no layer'}"
        if self.left:
            text += f"; as they are: {', '.join(f'{n} {name}' for name, n in sorted(self.left.items()))}"
        return text

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within, the modules run as they are."""
        forwards = [module.__dict__.pop("forward") for module in self.modules]
        try:
            yield
        finally:
            for module, forward in zip(self.modules, forwards, strict=True):
                module.__dict__["forward"] = forward


def install(model: nn.Module, layers: Layers, autocast: torch.dtype | None = None) -> Installed:
    """Has modules of `model` run by `layers` where these agree with them.

    `model` is on the device that it trains on, its weights whole (before FSDP shards them). `autocast`: the
    dtype of products, where it is not the weights'.
    """
    installed = Installed(layers.name)
    rotary = _Rotary(model, layers, autocast)
    for module in model.modules():
        if "forward" in vars(module):
            continue
        make: Callable[[Any], Callable[..., Any] | None]
        if _looks_like_norm(module):
            kind, make = NORM, partial(_norm, layers=layers, autocast=autocast)
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            kind, make = GATE, partial(_gate, layers=layers, autocast=autocast)
        elif _calls(type(module).forward, ROTARY):
            kind, make = ROPE, rotary.forward
        else:
            continue
        try:
            forward = make(module)
        except (RuntimeError, TypeError, ValueError):  # it does not run over rows alone
            forward = None
        if forward is None:
            installed.left[type(module).__name__] += 1
            continue
        module.__dict__["forward"] = MethodType(forward, module)
        installed.modules.append(module)
        installed.kinds[kind] += 1
    return installed


# --- norms ---------------------------------------------------------------------------------------


def _epsilon(module: nn.Module) -> float | None:
    found = (getattr(module, name, None) for name in ("variance_epsilon", "eps", "epsilon"))
    return next((value for value in found if isinstance(value, float)), None)


def _looks_like_norm(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters())
    return (
        list(parameters) == ["weight"]
        and parameters["weight"].ndim == 1
        and not any(True for _ in module.children())
        and _epsilon(module) is not None
        and _takes_one_argument(module)
    )


def _norm(module: Any, layers: Layers, autocast: torch.dtype | None) -> Callable[..., Tensor] | None:
    """A forward for this norm, in the form that comes closest; None where none is close enough."""
    weight, epsilon = module.weight, _epsilon(module)
    assert epsilon is not None
    if len(weight) > layers.widest:
        return None
    dtypes = {weight.dtype, autocast or weight.dtype}
    inputs = [_random(ROWS, len(weight)).to(weight.device, dtype) for dtype in dtypes]
    own = [_results(module, [x], [weight]) for x in inputs]
    fits: list[tuple[int, NormForm]] = []
    for form in (LLAMA, GEMMA, OLMO2):
        kernel = partial(layers.rms_norm, weight=weight, epsilon=epsilon, form=form)
        ours = [_results(kernel, [x], [weight]) for x in inputs]
        if all(_agree(a, b, x.dtype) for a, b, x in zip(ours, own, inputs, strict=True)):
            # Forms that round elsewhere agree too, but not in every number.
            fits.append((sum(_different(a[0], b[0]) for a, b in zip(ours, own, strict=True)), form))
    if not fits:
        return None
    form = min(fits, key=lambda fit: fit[0])[1]

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return layers.rms_norm(hidden_states, self.weight, epsilon, form)

    return forward


# --- gated MLPs ----------------------------------------------------------------------------------


def _gate(module: Any, layers: Layers, autocast: torch.dtype | None) -> Callable[..., Tensor] | None:
    if not _takes_one_argument(module):
        return None
    with unset_fake_temporarily():  # an activation has no weights
        grid = torch.linspace(-8, 8, 257)
        active = module.act_fn(grid)
        ones = torch.ones_like(grid)
        same = (
            name for name in ACTIVATIONS if torch.allclose(active, naive.gated(grid, ones, name), atol=1e-5)
        )
        activation = next(same, None)
    if activation is None:
        return None

    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(layers.gated(self.gate_proj(x), self.up_proj(x), activation))
        return out

    weight = next(module.gate_proj.parameters())
    x = _random(ROWS, module.gate_proj.in_features).to(weight)
    own = _results(module, [x], [], autocast)
    ours = _results(partial(forward, module), [x], [], autocast)
    return forward if _agree(ours, own, autocast or x.dtype) else None


# --- rotary positions ----------------------------------------------------------------------------


class _Rotary:
    """Forwards of attention modules with the kernel in them, one for each class and size of heads."""

    def __init__(self, model: nn.Module, layers: Layers, autocast: torch.dtype | None) -> None:
        self._rotate, self._autocast = layers.rotate, autocast
        self._made: dict[Any, Callable[..., Any] | None] = {}
        self._sizes = {
            2 * buffer.numel()
            for name, buffer in model.named_buffers()
            if name.rpartition(".")[2].endswith("inv_freq")
        }

    def forward(self, module: Any) -> Callable[..., Any] | None:
        size = getattr(module, "head_dim", None)
        if size is None or self._sizes != {size}:  # turned in part, or by angles that are not to be found
            return None
        weight = next(module.parameters())
        key = (type(module).forward, size, weight.dtype)
        if key not in self._made:
            self._made[key] = self._make(type(module).forward, size, weight)
        return self._made[key]

    def _make(self, forward: Any, size: int, weight: Tensor) -> Callable[..., Any] | None:
        own = _plain(forward).__globals__[ROTARY]
        if list(inspect.signature(own).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
            return None
        # Under autocast queries come in its dtype, and angles in that of the hidden rows.
        dtype = self._autocast or weight.dtype
        rows = [_random(1, heads, 4, size).to(weight.device, dtype) for heads in (3, 1)]
        cos, sin = _random(2, 1, 4, size).to(weight)
        theirs = _results(lambda q, k: own(q, k, cos, sin), rows, [])
        ours = _results(lambda q, k: self._rotate(q, k, cos, sin), rows, [])
        return _rebound(forward, ROTARY, _turning(self._rotate)) if _agree(ours, theirs, dtype) else None


def _turning(rotate: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`apply_rotary_pos_emb` by `rotate`; heads are in the dimension `unsqueeze_dim`, 1 or 2."""

    def turn(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if unsqueeze_dim == 1:
            return rotate(q, k, cos, sin)
        q, k = rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2)

    return turn


def _plain(function: Any) -> FunctionType:
    """The function that decorators are around."""
    found: FunctionType = inspect.unwrap(function)
    return found


def _calls(forward: Any, name: str) -> bool:
    plain = _plain(forward)
    return isinstance(plain, FunctionType) and name in plain.__code__.co_names and name in plain.__globals__


def _rebound(function: FunctionType, name: str, value: Any) -> FunctionType:
    """A copy of `function`, with the decorators around it, in whose code the global `name` is `value`."""
    inner = getattr(function, "__wrapped__", None)
    names, cells = function.__globals__, function.__closure__
    if inner is None:
        names = {**names, name: value}
    else:
        made = _rebound(inner, name, value)
        cells = tuple(CellType(made) if cell.cell_contents is inner else cell for cell in cells or ())
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# --- comparing -----------------------------------------------------------------------------------


def _takes_one_argument(module: nn.Module) -> bool:
    return len(inspect.signature(type(module).forward).parameters) == 2


def _random(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers each time; the run's own random states stay as they are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _results(
    function: Callable[..., Any],
    rows: list[Tensor],
    weights: list[Tensor],
    autocast: torch.dtype | None = None,
) -> list[Tensor]:
    """What `function` makes of `rows`, and the gradients of rows and of those weights that are trained."""
    leaves = [row.detach().clone().requires_grad_() for row in rows]
    device = rows[0].device.type
    with torch.enable_grad(), torch.autocast(device, autocast, enabled=autocast is not None):
        out = function(*leaves)
    out = list(out) if isinstance(out, tuple) else [out]
    upstream = [_random(*x.shape, seed=1).to(x) for x in out]
    wanted = [*leaves, *(weight for weight in weights if weight.requires_grad)]
    gradients = torch.autograd.grad(out, wanted, upstream, allow_unused=True, materialize_grads=True)
    return [*out, *gradients]


def _different(ours: Tensor, own: Tensor) -> int:
    """How many numbers differ; none where there are only shapes (a plan of memory)."""
    return 0 if is_fake(own) else int((ours != own).sum())


def _agree(ours: list[Tensor], own: list[Tensor], coarsest: torch.dtype) -> bool:
    """Whether dtypes are the same, and numbers within `ROUNDINGS` of the largest, each to the dtype of the
    result or the coarsest on its way."""
    for a, b in zip(ours, own, strict=True):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if is_fake(b):
            continue
        rounding = max(torch.finfo(dtype).eps for dtype in (b.dtype, coarsest))
        share = max(FLOAT_TOLERANCE, ROUNDINGS * rounding)
        if not float((a - b).detach().abs().max()) <= share * float(b.detach().abs().max()):
            return False
    return True
