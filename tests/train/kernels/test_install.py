"""Kernels put into models: the same log-probabilities and gradients, and the same files."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers
from tiny_models import FAMILIES, some_pairs
from torch import nn

from clair_apo.train import attention
from clair_apo.train.kernels.layers import install as installing
from clair_apo.train.kernels.layers.install import GATE, NORM, ROPE, Installed, install
from clair_apo.train.packing import pack
from clair_apo.train.policy import Policy

attention.register()

# One layer has two norms, and one is at the end; more where heads or outputs have norms of their own.
FUSED = {
    **{name: {NORM: 3, GATE: 1, ROPE: 1} for name in ("Llama", "Qwen2", "Mistral", "Gemma", "Granite")},
    "Qwen3": {NORM: 5, GATE: 1, ROPE: 1},
    "Gemma2": {NORM: 5, GATE: 1, ROPE: 1},
    "Cohere": {GATE: 1},
}


def tiny_model(family: str, **changes: Any) -> Any:
    """One layer: the interpreter is slow."""
    return tiny_models.tiny_model(family, num_hidden_layers=1, **changes)


def objective(chosen: torch.Tensor, rejected: torch.Tensor, part: slice) -> torch.Tensor:
    return torch.tanh(chosen / 50) - 0.7 * torch.tanh(rejected / 40)


def step(
    model: Any, *, share: bool = True, autocast: torch.dtype | None = None, budget: int | None = None
) -> dict[str, torch.Tensor]:
    """Log-probabilities of two short pairs, and all gradients."""
    if share:
        model.set_attn_implementation(attention.PLAIN)
    model.zero_grad()
    policy = Policy(model, share=share, autocast=autocast, budget=budget).train()
    loss, chosen, rejected = policy(pack(some_pairs()[:2], share=share), objective)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"chosen": chosen, "rejected": rejected, **gradients}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], share: float) -> None:
    """Within `share` of the largest number of each tensor, or what is nothing beside all of them."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        bound = share * max(float(tensor.abs().max()), 1e-3)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_the_model_as_it_is(family: str) -> None:
    model = tiny_model(family)
    wanted = step(model)
    installed = install(model)
    assert installed.kinds == FUSED[family]
    left = {"CohereLayerNorm": 2, "CohereAttention": 1} if family == "Cohere" else {}
    assert installed.left == left
    found = step(model)
    assert_same(found, wanted, 1e-5)
    assert any(not torch.equal(found[name], wanted[name]) for name in wanted)  # the kernels did run
    with installed.aside():
        assert_same(step(model), wanted, 0)
    assert all("forward" in vars(module) for module in installed.modules)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma"])
@pytest.mark.parametrize("way", ["float16", "autocast"])
def test_in_fewer_bits_it_rounds_as_the_model_does(family: str, way: str) -> None:
    """The distance to the model as it is stays below the model's own distance to float32. In float16, since
    Triton's interpreter does not round to bfloat16."""
    exact = step(tiny_model(family))
    model = tiny_model(family)
    autocast = torch.float16 if way == "autocast" else None
    if way == "float16":
        model.to(torch.float16)
    wanted = step(model, autocast=autocast)
    assert install(model, autocast).kinds == FUSED[family]
    found = step(model, autocast=autocast)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        rounding = float((tensor.double() - exact[name].double()).norm())
        assert float((found[name].double() - tensor.double()).norm()) <= rounding, name


def test_adapters_checkpointing_and_separate_passes() -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("Llama"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    base = model.get_base_model()
    apart = step(base, share=False)
    together = step(base)
    assert install(model).kinds == FUSED["Llama"]
    assert_same(step(base, budget=1), together, 1e-5)
    base.set_attn_implementation("eager")
    assert_same(step(base, share=False, budget=1), apart, 1e-5)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "norm" in n)


def test_names_files_and_copies_are_those_of_the_model_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("Llama")
    names = list(model.state_dict())
    install(model)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any("forward" in vars(module) for module in loaded.modules())
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        ids = torch.tensor([[3, 4, 5]])
        assert not torch.equal(twin(ids).logits, model(ids).logits)  # a copy runs over its own weights


def test_nothing_of_transformers_is_changed_for_others() -> None:
    module = transformers.models.llama.modeling_llama
    before = (module.apply_rotary_pos_emb, module.LlamaAttention.forward, module.LlamaRMSNorm.forward)
    install(tiny_model("Llama"))
    after = (module.apply_rotary_pos_emb, module.LlamaAttention.forward, module.LlamaRMSNorm.forward)
    assert before == after
    assert not any("forward" in vars(part) for part in tiny_model("Llama").modules())


class Norm(nn.Module):
    """An RMSNorm, or what looks like one."""

    def __init__(self, kind: str, width: int = 12) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))
        self.eps, self.kind = 1e-6, kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centre = x.mean(-1, keepdim=True) if self.kind == "layer norm" else 0
        x = x - centre
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.kind == "clipped":
            normal = normal.clamp(max=1)
        if self.kind == "choosy" and x.ndim < 3:
            raise ValueError("three dimensions, please")
        return normal * self.weight if self.kind != "no gradient" else normal * self.weight.detach()


class Gated(Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", ["rms norm", "layer norm", "clipped", "too wide", "no gradient", "choosy"])
def test_what_looks_alike_but_differs_stays(kind: str) -> None:
    model = nn.Sequential(Norm(kind, 8200 if kind == "too wide" else 12))
    installed = install(model)
    assert installed.kinds == ({NORM: 1} if kind == "rms norm" else {})
    assert installed.left == ({} if kind == "rms norm" else {"Norm": 1})
    assert install(nn.Sequential(Gated("rms norm"))).text() == "fused: no layer"


@pytest.mark.parametrize(
    ("activation", "fits"), [("silu", True), ("gelu_pytorch_tanh", True), ("gelu", False), ("relu", False)]
)
def test_an_activation_is_known_by_what_it_does(activation: str, fits: bool) -> None:
    model = tiny_model("Llama", hidden_act=activation)
    assert install(model).kinds[GATE] == fits


@pytest.mark.parametrize("name", ["olmo2", "llama"])
def test_the_form_of_a_norm_is_told_by_its_roundings(name: str) -> None:
    family = {"olmo2": transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm}.get(
        name, transformers.models.llama.modeling_llama.LlamaRMSNorm
    )
    norm = family(64, 1e-6).to(torch.float16)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(64))
    x = torch.randn(50, 64).to(torch.float16)
    wanted = norm(x)
    assert install(nn.Sequential(norm)).kinds == {NORM: 1}
    assert torch.equal(norm(x), wanted)


def test_rotary_positions_of_a_part_of_a_head_stay() -> None:
    model = tiny_model("Llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:2]
    installed = install(model)
    assert installed.kinds[ROPE] == 0
    assert installed.left == {"LlamaAttention": 1}


def test_scaled_frequencies_and_other_layouts_of_heads() -> None:
    scaling = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = tiny_model("Llama", rope_parameters=scaling)
    wanted = step(model)
    assert install(model).kinds == FUSED["Llama"]
    assert_same(step(model), wanted, 1e-5)
    q, k = torch.randn(1, 5, 3, 8), torch.randn(1, 5, 1, 8)
    cos, sin = torch.randn(2, 1, 5, 8)
    own = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    torch.testing.assert_close(installing._turn(q, k, cos, sin, 2), own(q, k, cos, sin, 2))


def test_one_line_says_what_is_fused() -> None:
    installed = Installed()
    installed.kinds.update({NORM: 61, GATE: 30, ROPE: 30})
    assert installed.text() == "fused: 61 RMSNorm, 30 SwiGLU, 30 RoPE"
    installed.left.update({"CohereLayerNorm": 4})
    assert installed.text().endswith("; as they are: 4 CohereLayerNorm")


def test_a_copy_of_a_function_keeps_its_decorators() -> None:
    def doubled(function: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(function)
        def call() -> int:
            return 2 * function()

        return call

    @doubled
    def value() -> int:
        return VALUE

    assert (installing._rebound(value, "VALUE", 5)(), value()) == (10, 2)


VALUE = 1
