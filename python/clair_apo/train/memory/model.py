"""The model of a run without its weights: shapes from its config, ready for a pass over nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from clair_apo.errors import ClairError
from clair_apo.terminal import one_line
from clair_apo.train import attention
from clair_apo.train.kernels import installed
from clair_apo.train.kernels.layers import install
from clair_apo.train.load import folder_of, sharing, with_adapters
from clair_apo.train.memory.account import Parameters
from clair_apo.train.memory.trace import stand_in
from clair_apo.train.policy import Policy, without_dropout

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions


def read_config(model: str) -> Any:
    """The config of a model: a folder, a name on the Hub, or local:smollm2."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder_of(model))
    except (OSError, ValueError, KeyError) as error:
        said = one_line(str(error), 300)
        raise ClairError(f"{one_line(model)}: its config could not be read: {said}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ClairError(f"{one_line(model)} is quantised; train the model that it was made from")
    return config


def empty_policy(
    config: Any,
    options: TrainOptions,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    longest: int,
    device: torch.device,
    *,
    kernels: str,
) -> Policy:
    """The policy as a run on `device` makes it, its parameters without contents. To be called within
    `without_contents`."""
    import transformers

    causal_lm: Any = transformers.AutoModelForCausalLM  # not typed
    attention.register()
    # On the meta device first: what initialises and adapts modules there asks for no contents.
    with unset_fake_temporarily(), torch.device("meta"):
        model = causal_lm.from_config(copy.deepcopy(config), dtype=dtype)

        without_dropout(model)
        shares, _ = sharing(model, options, longest, device)
        stand_in(model)
        if options.lora_rank:
            model = with_adapters(model, options)
    _without_contents(model)
    policy = Policy(
        model,
        share=shares,
        budget=1,
        autocast=autocast,
        fused_head=kernels == "fused",
        remake=device.type == "cuda",
    )
    policy.train().requires_grad_(not options.lora_rank)
    if options.lora_rank:
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return policy


def install_layers(policy: Policy, kernels: str) -> None:
    """Has its layers run as those of a run do, "fused", "lean" or "plain". To be called within
    `without_contents`."""
    if kernels != "plain":
        install.install(policy.causal_lm, install.makes(kernels), policy.autocast)


def kernels_of(options: TrainOptions, device: torch.device) -> str:
    """By what layers and head of a run on this device will run, as far as one can know without it; what
    kernels keep is seen only where Triton is installed."""
    if options.kernels in ("lean", "plain"):
        return options.kernels
    return "fused" if device.type == "cuda" and installed() else "lean"


def _without_contents(model: torch.nn.Module) -> None:
    """Moves all parameters and buffers from the meta device to the CPU, where they are without contents
    too. What is tied stays tied."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    moved[id(tensor)] = torch.nn.Parameter(empty) if own is module._parameters else empty
                own[name] = moved[id(tensor)]  # type: ignore[assignment]


def one_of_each(policy: Policy) -> list[int]:
    """Takes all layers out of the policy but two of each kind (of one, if there are no more), since
    layers with parameters of the same shapes keep the same. Returns for each of the layers before the
    place of the second of its kind: the first of all makes what the others use too, such as masks."""
    shapes = [(type(layer), tuple(p.shape for p in layer.parameters())) for layer in policy.layers]
    chosen = [i for i, shape in enumerate(shapes) if shapes[:i].count(shape) < 2]
    kinds = [max(n for n, i in enumerate(chosen) if shapes[i] == shape) for shape in shapes]
    left = [policy.layers[i] for i in chosen]
    for module in list(policy.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ModuleList) and policy.layers[0] in list(child):
                setattr(module, name, torch.nn.ModuleList(left))
    policy.layers = left
    return kinds


def count(policy: Policy) -> Parameters:
    """The numbers of its parameters, tied ones once."""
    every = list(policy.parameters())
    in_layers = [list(layer.parameters()) for layer in policy.layers]
    within = {id(p) for layer in in_layers for p in layer}
    around = [p for p in every if id(p) not in within]
    return Parameters(
        total=sum(p.numel() for p in every),
        trained=sum(p.numel() for p in every if p.requires_grad),
        weights=_bytes(every),
        gradients=_bytes(every, trained=True),
        layer_weights=max(map(_bytes, in_layers), default=0),
        outside_weights=_bytes(around),
        layer_gradients=max((_bytes(layer, trained=True) for layer in in_layers), default=0),
        outside_gradients=_bytes(around, trained=True),
    )


def _bytes(parameters: Iterable[torch.nn.Parameter], *, trained: bool = False) -> int:
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad or not trained)
