"""The model that is trained, with our head inside its forward pass.

The head's weight is used within the wrapped module's `forward`, so that what gathers parameters there
(FSDP) and what waits for their gradients (DDP) sees it. A model that cannot share prefixes runs each
answer by itself, padded at the end, which no earlier token sees."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clair_apo.train.head import HeadShape, PairLosses, pair_losses
from clair_apo.train.kernels.layers.remake import remaking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clair_apo.train.packing import Packed, Pair


class Policy(nn.Module):
    """`causal_lm`: a model of `AutoModelForCausalLM`, possibly with adapters of peft around it.

    `share`: whether pairs come with shared prefixes. `budget`: tokens whose activations are kept; in a
    microbatch of more, so many of the last layers keep theirs as fit, and the others run twice.
    `autocast`: dtype of products, where it is not the weights'. `fused_head`: by Triton's kernels in place
    of `head.py`; they need a device that `kernels.available` names. `remake`: whether what our norms and
    gates give is made again in the backward pass (`kernels/layers/remake.py`).
    """

    def __init__(
        self,
        causal_lm: Any,
        *,
        share: bool = True,
        budget: int | None = None,
        autocast: torch.dtype | None = None,
        fused_head: bool = False,
        remake: bool = False,
    ) -> None:
        super().__init__()
        self._pair_losses = pair_losses
        if fused_head:
            from clair_apo.train.kernels.head import fused

            self._pair_losses = fused.pair_losses
        self.autocast = autocast
        self.remake = remake
        self.causal_lm = causal_lm
        self.share = share
        self.budget = budget
        plain = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
        self._inner = [plain]  # in a list: it is a part of causal_lm already
        self.head_shape = head_shape(plain.config)
        self.layers = _layers(plain)
        if autocast is not None:
            _without_casts(causal_lm)
        if budget is not None:
            # What transformers' own switch does, which has another name in each version.
            for layer in self.layers:
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    @property
    def model(self) -> Any:
        """The model of transformers, without adapters around it."""
        return self._inner[0]

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, batch: Packed, losses: PairLosses) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the pairs' losses (float64, with the gradient), and the summed log-probabilities
        of chosen and of rejected answers (float64 [pairs])."""
        device = batch.input_ids.device.type
        with (
            torch.autocast(device, self.autocast, enabled=self.autocast is not None),
            remaking() if self.remake else contextlib.nullcontext(),
        ):
            hidden = self.hidden(batch)[batch.rows]
        head = self.model.get_output_embeddings()
        dtype = self.autocast or head.weight.dtype
        return self._pair_losses(
            hidden.to(dtype),
            head.weight.to(dtype),
            batch.targets,
            batch.entries,
            losses,
            None if head.bias is None else head.bias.to(dtype),
            self.head_shape,
        )

    def plain_logps(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of chosen and of rejected answers, float64 [pairs], from the model's own
        logits: to compare with. A method, since weights that are sharded are gathered around it."""
        from clair_apo.train import naive

        return naive.answer_logps(self.model, pairs)

    def hidden(self, batch: Packed) -> Tensor:
        """The last hidden rows of a microbatch, [T, H], behind the final norm."""
        body = self.model.base_model
        self._checkpoint(batch.tokens)
        if self.share:
            out = body(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                branches=batch.branches,
                use_cache=False,
            )
            rows: Tensor = out.last_hidden_state[0]
            return rows
        lengths = [n for b in batch.branches for n in (b.chosen, b.rejected) if n]
        sequences = list(torch.split(batch.input_ids[0], lengths))
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        padded = body(input_ids=ids, use_cache=False).last_hidden_state
        return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])

    def _checkpoint(self, tokens: int) -> None:
        """Has as many layers run twice as the budget of activations asks for."""
        if self.budget is None:
            return
        count = len(self.layers)
        twice = 0 if tokens <= self.budget else count - count * self.budget // tokens
        for number, layer in enumerate(self.layers):
            layer.gradient_checkpointing = number < twice


def _layers(model: Any) -> list[Any]:
    """The model's decoder layers: what runs twice or is sharded as a whole."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not model.supports_gradient_checkpointing:
        return []
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _without_casts(model: Any) -> None:
    """Has adapters of peft leave the dtype of their inputs to autocast, which takes them as they are.
    Their own way to it is by float32, and keeps another copy for each adapter."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def without_dropout(model: nn.Module) -> None:
    """Turns dropout off: with it policy and reference would differ before the first step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def head_shape(config: Any) -> HeadShape:
    """What the config says of the head: `logit_scale` (Cohere), `logits_scaling` (Granite),
    `final_logit_softcapping` (Gemma)."""
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1.0
    if divisor := getattr(text, "logits_scaling", None):
        scale = 1.0 / divisor
    return HeadShape(float(scale), getattr(text, "final_logit_softcapping", None))
