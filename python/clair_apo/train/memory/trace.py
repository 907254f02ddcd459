"""What one pass keeps and needs, found by running it over tensors that have shapes and no contents.

The pass is that of training: `Policy` with its attention, its head and its way of running layers twice,
forward and backward, under PyTorch's `FakeTensorMode`. Nothing is allocated or computed, no weight is
read, and a model of 8B takes a few seconds. A dispatch mode sees each storage begin and end and adds up
those that live.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from clair_apo.train import attention
from clair_apo.train.kernels import installed
from clair_apo.train.packing import Packed, pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clair_apo.train.policy import Policy


@dataclass(frozen=True, slots=True)
class Made:
    """A storage that lives: who made it (number of the layer, or None; the part of it), as which dtype,
    and how many bytes it has."""

    layer: int | None
    part: str
    dtype: torch.dtype
    size: int


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own hook of subclasses
    """Adds up the storages that are made while it is entered and live still: `live`, and `peak` since
    `mark`."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.layer: int | None = None
        self.part = ""
        self.made: dict[int, Made] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def mark(self) -> int:
        """The highest sum since the last mark; begins anew."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._watched or key in self._known:
            return
        self.made[key] = Made(self.layer, self.part, tensor.dtype, storage.nbytes())
        self._watched[key] = weakref.ref(storage, lambda _: self._gone(key))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        del self._watched[key]
        self.live -= self.made.pop(key).size


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass over `tokens` tokens, in bytes beside weights and gradients.

    `kept` is what lives behind the last layer, each entry with its maker; `inputs` are the tensors that
    layers are called with. Above what is kept the head needs `head`, and above what is left then the
    backward pass of the last layer needs `backward`, and that of the others `before` (which may be less
    than nothing: the last one's activations have gone by then); `left` is what the head leaves behind
    (gradients of hidden rows and of its weight). `end` is all that lives when the first layer is done, at
    the embedding's gradient.
    """

    tokens: int
    kept: tuple[Made, ...]
    inputs: tuple[int, ...]
    head: int
    left: int
    backward: int
    before: int
    end: int

    @property
    def layers(self) -> tuple[int, ...]:
        """What each layer keeps."""
        sums = [0] * len(self.inputs)
        for made in self.kept:
            if made.layer is not None:
                sums[made.layer] += made.size
        return tuple(sums)

    @property
    def outside(self) -> int:
        """What is kept and made by no layer: embedded tokens, angles, the final norm's."""
        return sum(made.size for made in self.kept if made.layer is None)


@dataclass
class _Pair:
    """Tokens of an imagined pair."""

    prompt: NDArray[np.int32]
    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]


def imagined(tokens: int, pairs: int, *, share: bool = True) -> Packed:
    """A microbatch of pairs that take `tokens` each, nearly all of them scored.

    Half of a pair is what its answers share: more than in real pairs, whose keys of prefixes, gathered once
    more, take less.
    """
    shared = tokens // 2 if share else 0
    own = max(1, (tokens - 1 - shared) // 2)
    prompt = np.zeros(max(1, tokens - shared - 2 * own), np.int32)
    answers = [np.full(shared + own, 0, np.int32) for _ in range(2)]
    answers[1][shared:] = 1  # the first token that differs ends what is shared
    return pack([_Pair(prompt, *answers)] * pairs, share=share)


@contextlib.contextmanager
def without_contents() -> Iterator[None]:
    """Within it tensors are shapes, on the CPU, and kernels are not launched."""
    attention.forget()
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            _without_launches(),
            _without_reports(),
            warnings.catch_warnings(),
        ):
            # The head asks where its tensors begin: at 0, which is aligned.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        attention.forget()  # masks without contents are of no use to others


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """An operation whose shapes do not fit is reported with its whole stack, also where it was only tried:
    a kernel in place of a module."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def _without_launches() -> Iterator[None]:
    """Kernels of Triton write into tensors that are there before, so their shapes are known without."""
    if not installed():
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    with contextlib.ExitStack() as stack:
        for kind in (JITFunction, InterpretedFunction):
            stack.callback(setattr, kind, "run", kind.run)
            kind.run = _launch_nothing
        yield


def _launch_nothing(*_: Any, **__: Any) -> None:
    pass


def run_pass(policy: Policy, batch: Packed, *, twice: bool, sharded: bool = False) -> Pass:
    """Runs `policy`, whose parameters are without contents, over `batch`; every layer `twice`, or none.
    `sharded`: gradients are made anew, and those of a layer go when it is done, as with FSDP."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    for parameter in parameters:  # as from the second microbatch of a step on
        parameter.grad = None if sharded else torch.empty_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    batch = empty_batch(batch)
    known = [*policy.parameters(), *policy.buffers(), *gradients, *_tensors(batch)]
    policy.budget = 1 if twice else None
    if not twice:
        for layer in policy.layers:
            layer.gradient_checkpointing = False
    ledger = Ledger(known)
    inputs = [0] * len(policy.layers)
    found: dict[str, Any] = {}
    done: dict[int, int] = {}  # peaks up to the end of the last and of the first layer

    def behind_layers(*_: Any) -> None:
        found["kept"] = tuple(ledger.made.values())
        found["hidden"] = ledger.live
        ledger.mark()
        ledger.layer, ledger.part = None, "head"

    def layer_done(number: int) -> None:
        if sharded:
            for parameter in policy.layers[number].parameters():
                parameter.grad = None
        if number in (0, len(policy.layers) - 1):
            done[number] = ledger.mark()

    handles = _owners(ledger, policy, inputs, layer_done)
    handles.append(policy.model.base_model.register_forward_hook(behind_layers))
    try:
        with ledger:
            loss, _, _ = policy(batch, _margins)
            head, after = ledger.mark() - found["hidden"], ledger.live
            for handle in handles:  # layers that run once more would be seen as new ones
                handle.remove()
            loss.backward()
            # Where the inputs of the first layer want no gradient, nothing comes behind it.
            end = ledger.peak if 0 in done else 0
            backward = done.get(len(policy.layers) - 1, ledger.peak) - after
            before = done.get(0, ledger.peak) - after
    finally:
        for handle in handles:
            handle.remove()
    left = after - found["hidden"]
    return Pass(batch.tokens, found["kept"], tuple(inputs), head, left, backward, before, end)


def _owners(ledger: Ledger, policy: Policy, inputs: list[int], leave: Callable[[int], None]) -> list[Any]:
    """Has the ledger know which layer, and which direct part of it, is at work; calls `leave` with the
    number of each that the backward pass leaves (not of one whose inputs want no gradient)."""
    handles = []

    def at(layer: int | None, part: str) -> Any:
        def hook(_: nn.Module, *__: Any) -> None:
            ledger.layer, ledger.part = layer, part

        return hook

    def takes(number: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[number] = args[0].untyped_storage().nbytes()
            if args[0].requires_grad:
                args[0].register_hook(lambda _: leave(number))
            ledger.layer, ledger.part = number, ""

        return hook

    for number, layer in enumerate(policy.layers):
        handles.append(layer.register_forward_pre_hook(takes(number)))
        handles.append(layer.register_forward_hook(at(None, "")))
        for name, part in layer.named_children():
            handles.append(part.register_forward_pre_hook(at(number, name)))
            handles.append(part.register_forward_hook(at(number, "")))
    return handles


def stand_in(model: Any) -> None:
    """Takes the place of FlexAttention, which has no backward pass on the CPU, and keeps what it keeps."""
    from transformers import AttentionInterface

    if model.config._attn_implementation == attention.FLEX:
        AttentionInterface.register("clair-flex-shapes", _flex_shapes)
        model.set_attn_implementation("clair-flex-shapes")


def _flex_shapes(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    out: Tensor = _FlexShapes.apply(query, key, value)
    return out.transpose(1, 2), None


class _FlexShapes(torch.autograd.Function):
    """Queries, keys, values, the result, and a float32 log-sum-exp of each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _margins(chosen: Tensor, rejected: Tensor, part: slice) -> Tensor:
    return rejected - chosen


def _tensors(batch: Packed) -> list[Tensor]:
    return [batch.input_ids, batch.position_ids, batch.rows, batch.targets]


def empty_batch(batch: Packed) -> Packed:
    """Its shapes. To be called within `without_contents`."""
    input_ids, position_ids, rows, targets = (torch.empty_like(t) for t in _tensors(batch))
    return Packed(input_ids, position_ids, rows, targets, batch.branches, batch.entries)
