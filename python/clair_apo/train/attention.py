"""Attention over a microbatch of branches, plugged into transformers' `AttentionInterface`.

Each token sees the tokens of its own branch up to itself, and the prefix of its pair. Four ways to compute
that, chosen by the model's `attn_implementation`:

- `clair-plain`: two calls of PyTorch's SDPA for each pair. The truth for the others, and the way of CPUs
  that have no better. The rejected rest has a dense mask, so nothing on CUDA chooses this by itself.
- `clair-blocks`: in Rust, in float32 on a CPU with AVX-512 or AVX2.
- `clair-flex`: FlexAttention with one block mask for the whole microbatch.
- `clair-varlen`: one call of variable-length attention, with keys and values of the prefix gathered once
  for each branch. CUDA only. No mask exists.

A model whose layers look back less far than the sequences are long, or do not attend at all, takes none of
these: see `shares`.
"""

from __future__ import annotations

import contextlib
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clair_apo.errors import ClairError
from clair_apo.train.model_config import layers_of, uneven

if TYPE_CHECKING:
    from clair_apo.train.packing import Branches

PLAIN, BLOCKS, FLEX, VARLEN = "clair-plain", "clair-blocks", "clair-flex", "clair-varlen"
NAMES = {"plain": PLAIN, "blocks": BLOCKS, "flex": FLEX, "varlen": VARLEN}


def register() -> None:
    """Makes them known to transformers."""
    from transformers import AttentionInterface

    for name, function in ((PLAIN, plain), (BLOCKS, blocks), (FLEX, flex), (VARLEN, varlen)):
        AttentionInterface.register(name, function)


def shares(config: Any, longest: int) -> str | None:
    """Why a model with this config cannot share prefixes of sequences of up to `longest` tokens, or None.

    Sharing needs full causal attention in every layer, or windows that no sequence outgrows.
    """
    text = config.get_text_config()
    types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := types - {"full_attention", "sliding_attention"}:
        return f"its layers are not all attention ({', '.join(sorted(other))})"
    windows = [getattr(layer, "sliding_window", None) for layer in layers_of(config)]
    window = min((window for window in windows if window), default=None)
    used = getattr(text, "use_sliding_window", True) and (
        "sliding_attention" in types or not getattr(text, "layer_types", None)
    )
    if window and used and window < longest:
        return f"its attention looks back {window} tokens, and sequences have up to {longest}"
    return None


def no_varlen(config: Any) -> str | None:
    """Why variable-length attention cannot be used with a model of this config, or None."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return "it knows no soft cap of attention scores"
    if (why := uneven(config, 8, most=256)) is not None:
        return why
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        known: set[str] = set()
    else:
        known = set(inspect.signature(varlen_attn).parameters)
    if not {"scale", "window_size", "enable_gqa"} <= known:
        return f"torch {torch.__version__} is too old for it"
    return None


def plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    branches: tuple[Branches, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`query` [1, heads, T, d], `key`, `value` [1, key heads, T, d] -> [1, T, heads, d].

    Raises: ClairError if the model gives no `branches`, that is, drops what it is called with.
    """
    _check(module, query, branches, kwargs)
    query, key = _as_value(value, query, key)
    branches = branches or ()
    lengths = [n for b in branches for n in (b.prefix + b.chosen, b.rejected)]
    # Split, not sliced: the gradient of a slice is as large as all of it, and zero elsewhere.
    sides = list(zip(*(torch.split(x, lengths, dim=2) for x in (query, key, value)), strict=True))
    parts = []
    for (_, prefix, chosen, rejected), first, rest in zip(branches, sides[::2], sides[1::2], strict=True):
        if prefix + chosen:
            q, k, v = first
            parts.append(_attend(q, k, v, scaling, dropout, softcap))
        if rejected:
            q, k, v = (torch.cat([x[:, :, :prefix], y], dim=2) for x, y in zip(first, rest, strict=True))
            # A mask has all keys multiplied with all queries, which a causal pass halves: where the rest is
            # the longer part, running the prefix once more and leaving it out is less.
            again = rejected >= prefix and softcap is None
            out = _attend(q if again else rest[0], k, v, scaling, dropout, softcap)
            parts.append(out[:, :, prefix:] if again else out)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float, softcap: float | None
) -> Tensor:
    """Causal, the last query and the last key being the same token."""
    before = k.shape[2] - q.shape[2]
    groups = q.shape[1] // k.shape[1]
    if softcap is None:
        mask = _lower_right(q.shape[2], k.shape[2], q.device) if before else None
        with _without_cudnn() if before and q.is_cuda else contextlib.nullcontext():
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=not before,
                scale=scale,
                enable_gqa=groups > 1,
            )
        return _in_fixed_order(out)
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * scale / softcap)
    scores = scores.masked_fill(~_lower_right(q.shape[2], k.shape[2], q.device), float("-inf"))
    weights = F.dropout(scores.float().softmax(-1).to(q.dtype), dropout)
    return weights @ v


def _without_cudnn() -> Any:
    """cuDNN's backward pass gives NaN with a mask of some lengths (huggingface/trl#7181)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@lru_cache(maxsize=4)  # the layers of one pass ask for the same ones
def _lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    branches: tuple[Branches, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `plain`, in Rust: float32 on a CPU (`kernels/attention`)."""
    from clair_apo.train.kernels.attention.blocks import attend

    _check(module, query, branches, kwargs)
    _neither(dropout, softcap, "blocks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(query, key, value, branches or (), scale)[None], None


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    branches: tuple[Branches, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `plain`. On a CPU FlexAttention has no backward pass, so there it serves tests only."""
    from torch.nn.attention.flex_attention import flex_attention

    _check(module, query, branches, kwargs)
    if dropout:
        raise ClairError("attention dropout is not possible with --attention flex; use plain")
    query, key = _as_value(value, query, key)
    mask = _block_mask(branches or (), query.shape[2], query.device)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap else score

    attend = _compiled_flex() if query.is_cuda else flex_attention
    out = attend(
        query,
        key,
        value,
        score_mod=capped if softcap else None,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=2)
def _block_mask(branches: tuple[Branches, ...], tokens: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    pair, branch = torch.empty(2, tokens, dtype=torch.int32)
    for number, (start, prefix, chosen, rejected) in enumerate(branches):
        pair[start : start + prefix + chosen + rejected] = number
        lengths = torch.tensor([prefix, chosen, rejected])
        branch[start : start + prefix + chosen + rejected] = torch.arange(
            3, dtype=torch.int32
        ).repeat_interleave(lengths)
    pair, branch = pair.to(device), branch.to(device)

    def sees(_: Tensor, __: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        own = (branch[kv] == 0) | (branch[kv] == branch[q])
        seen: Tensor = (kv <= q) & (pair[kv] == pair[q]) & own
        return seen

    return create_block_mask(sees, None, None, tokens, tokens, device=device)


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    branches: tuple[Branches, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `plain`, by `torch.nn.attention.varlen`: bf16 or fp16 on CUDA.

    A rest behind a prefix needs causal sequences of unequal lengths aligned at their ends. Of two backends
    FlashAttention does that, and cuDNN aligns their beginnings; `varlen_attn` knows, and takes the former
    wherever the offsets of queries and keys are two tensors. Here they always are.
    """
    from torch.nn.attention.varlen import varlen_attn

    _check(module, query, branches, kwargs)
    _neither(dropout, softcap, "varlen")
    query, key = _as_value(value, query, key)
    gather, queries, keys = varlen_layout(branches or (), query.device)
    k, v = (x[0].transpose(0, 1)[gather] for x in (key, value))
    out = varlen_attn(
        query[0].transpose(0, 1),
        k,
        v,
        queries.offsets,
        keys.offsets,
        queries.longest,
        keys.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)  # a tuple only where the log-sum-exp was asked for
    return _in_fixed_order(out)[None], None


def _as_value(value: Tensor, *others: Tensor) -> list[Tensor]:
    """Queries and keys in the dtype of values: under autocast angles in float32 make them float32, and only
    SDPA would turn them back by itself."""
    return [x.to(value.dtype) for x in others]


def _in_fixed_order(out: Tensor) -> Tensor:
    """Has the backward pass of this attention add in a fixed order, so that a resumed run has the same
    bits.

    On CUDA FlashAttention and memory-efficient attention do so only while deterministic algorithms are
    asked for, and other operations would have to pass the same demand if it stood for the whole run.
    """
    if out.is_cuda and out.grad_fn is not None:
        _ask_for_fixed_order(out.grad_fn)
    return out


def _ask_for_fixed_order(node: Any) -> None:
    before: list[bool] = []

    def ask(*_: object) -> None:
        before.append(torch.are_deterministic_algorithms_enabled())
        torch.use_deterministic_algorithms(True)

    def leave(*_: object) -> None:
        torch.use_deterministic_algorithms(before.pop())

    node.register_prehook(ask)
    node.register_hook(leave)


class Lengths:
    """Sequences laid end to end: `offsets` int32 [n + 1], and the longest one's tokens."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.offsets = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        self.longest = max(lengths, default=0)


@lru_cache(maxsize=2)
def varlen_layout(branches: tuple[Branches, ...], device: torch.device) -> tuple[Tensor, Lengths, Lengths]:
    """Which tokens' keys and values are gathered, int64, and the sequences of queries and of keys.

    Queries stay in their places: `prefix + chosen` of a pair is one causal sequence, and its rejected rest
    one whose keys are those of the prefix and its own, aligned at their ends.
    """
    gather: list[Tensor] = []
    queries, keys = [], []
    for start, prefix, chosen, rejected in branches:
        split = start + prefix + chosen
        if split > start:
            gather.append(torch.arange(start, split))
            queries.append(split - start)
            keys.append(split - start)
        if rejected:
            gather += [torch.arange(start, start + prefix), torch.arange(split, split + rejected)]
            queries.append(rejected)
            keys.append(prefix + rejected)
    return torch.cat(gather).to(device), Lengths(queries, device), Lengths(keys, device)


def forget() -> None:
    """Drops what is kept of the last microbatches: masks and layouts."""
    for cached in (_lower_right, _block_mask, varlen_layout):
        cached.cache_clear()


def _neither(dropout: float, softcap: float | None, name: str) -> None:
    if dropout or softcap:
        what = "attention dropout" if dropout else "a soft cap of attention scores"
        raise ClairError(f"{what} is not possible with --attention {name}; use plain")


def _check(
    module: nn.Module, query: Tensor, branches: tuple[Branches, ...] | None, kwargs: dict[str, Any]
) -> None:
    if branches is None:
        raise ClairError(
            f"{type(module).__name__} does not hand its arguments on to attention, so prefixes cannot be "
            "shared; --no-share trains it without"
        )
    tokens = sum(sum(branch[1:]) for branch in branches)
    if (query.shape[0], query.shape[2]) != (1, tokens):
        raise ClairError(
            f"{type(module).__name__} does not attend to the tokens of a microbatch as they lie, so "
            "prefixes cannot be shared; --no-share trains it without"
        )
    if kwargs.get("s_aux") is not None:
        raise ClairError("attention with sinks cannot share prefixes; --no-share trains it without")
