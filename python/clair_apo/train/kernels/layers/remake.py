"""Results that are made again in the backward pass in place of being kept.

What a norm or a gate gives is saved by the products that follow: about a third of what a layer of a Llama
keeps. To make it again takes one pass over memory, from what its function keeps anyway. So a function marks
its result (`remakeable`), and within `remaking` the operations that save such a result, or a view of it,
save who made it. The first of them that needs it has it made again, the others find it, and it goes with
the last one.

What is made again has the same bits, since the same operations run over the same numbers. What is not known
is kept: results that were changed in place or came without a gradient, and all that is saved in layers that
run twice, whose own hooks lie within these. It is done on CUDA, where memory decides how many layers these
are; on a CPU it has not been seen to pay.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

# The attribute of a node of the graph that says how its result is made again.
_SOURCE = "clair_apo_source"


class _Source:
    """How the result of a node is made again, and its version: it counts changes in place."""

    def __init__(self, again: Callable[[Any], Tensor], version: int) -> None:
        self.again, self.version = again, version
        self._remade: weakref.ref[_Remade] | None = None

    def remade(self, node: Any) -> _Remade:
        """The same for all that save the result while one of them holds it."""
        found = self._remade and self._remade()
        if not found:
            found = _Remade(node, self.again)
            self._remade = weakref.ref(found)
        return found


class _Remade:
    """The result of a node, once it was asked for."""

    def __init__(self, node: Any, again: Callable[[Any], Tensor]) -> None:
        self._node, self._again = node, again
        self._result: Tensor | None = None

    def get(self) -> Tensor:
        if self._result is None:
            with torch.no_grad():
                self._result = self._again(self._node)
        return self._result


class _View(NamedTuple):
    """What an operation saved of a result."""

    remade: _Remade
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Kept(NamedTuple):
    tensor: Tensor
    version: int


def remakeable(result: Tensor, again: Callable[[Any], Tensor]) -> Tensor:
    """Marks the `result` of an autograd function: `again` gives its bits once more, in the same layout,
    from the context of the function (its `saved_tensors`). Returns the result."""
    node = result.grad_fn
    if node is not None:
        setattr(node, _SOURCE, _Source(again, result._version))
    return result


def remaking() -> saved_tensors_hooks:
    """Within it, what is marked and saved for the backward pass is made again there."""
    return saved_tensors_hooks(_pack, _unpack)


def _pack(x: Tensor) -> _View | _Kept:
    whole = x if x._base is None else x._base
    node = whole.grad_fn
    source = getattr(node, _SOURCE, None)
    if source is None or source.version != whole._version or whole.dtype != x.dtype:
        # Not `x` itself: the graph would hold what holds the graph.
        return _Kept(x.detach(), x._version)
    return _View(source.remade(node), x.shape, x.stride(), int(x.storage_offset()))


def _unpack(packed: _View | _Kept) -> Tensor:
    if isinstance(packed, _View):
        return packed.remade.get().as_strided(packed.size, packed.stride, packed.offset)
    tensor, version = packed
    if tensor._version != version:  # PyTorch leaves this check to those who have hooks
        raise RuntimeError(
            f"a {tensor.dtype} {tuple(tensor.shape)} that the backward pass needs was changed in place: "
            f"it is at version {tensor._version}, and was saved at {version}"
        )
    return tensor
