"""What is made again in the backward pass, against the same kept: every bit, and what lives in between."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from tiny_models import FAMILIES, some_pairs, tiny_model
from torch import Tensor, nn

from clair_apo.train import attention
from clair_apo.train import policy as policies
from clair_apo.train.kernels.layers import install as installing
from clair_apo.train.kernels.layers import lean, norm, remake, swiglu
from clair_apo.train.kernels.layers.install import Layers, install
from clair_apo.train.kernels.layers.naive import GEMMA, LLAMA, OLMO2, NormForm
from clair_apo.train.kernels.layers.remake import remakeable, remaking
from clair_apo.train.packing import pack
from clair_apo.train.policy import Policy

attention.register()


@contextlib.contextmanager
def counted() -> Iterator[list[torch.Size]]:
    """Shapes of what was made again."""
    made: list[torch.Size] = []
    get = remake._Remade.get

    def counting(self: remake._Remade) -> Tensor:
        first = self._result is None
        result = get(self)
        if first:
            made.append(result.shape)
        return result

    with mock.patch.object(remake._Remade, "get", counting):
        yield made


def objective(chosen: Tensor, rejected: Tensor, part: slice) -> Tensor:
    return torch.tanh(chosen / 50) - 0.7 * torch.tanh(rejected / 40)


def step(model: Any, **flags: Any) -> dict[str, Tensor]:
    """Log-probabilities of two short pairs, and all gradients."""
    model.zero_grad()
    policy = Policy(model, **flags).train()
    loss, chosen, rejected = policy(pack(some_pairs()[:2], share=policy.share), objective)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"chosen": chosen, "rejected": rejected, **gradients}


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def sharing(family: str, layers: int = 1, **changes: Any) -> Any:
    model = tiny_model(family, num_hidden_layers=layers, **changes)
    model.set_attn_implementation(attention.PLAIN)
    return model


@pytest.mark.parametrize(
    ("family", "make"),
    # Kernels are slow in the interpreter: norms of either form, and products with a bias.
    [
        *((name, installing.lean) for name in FAMILIES),
        ("Gemma2", installing.fused),
        ("Qwen2", installing.fused),
    ],
)
def test_gradients_have_the_same_bits(family: str, make: Callable[[], Layers]) -> None:
    model = sharing(family)
    install(model, make())
    wanted = step(model)
    with counted() as made:
        found = step(model, remake=True)
    assert_same_bits(found, wanted)
    # Of a layer two norms whose result products save, and the gate; Cohere's are no RMSNorms.
    assert len(made) == (1 if family == "Cohere" else 3)
    assert [shape[-1] for shape in made].count(96) == 1  # the gate's product


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_fewer_bits_too(dtype: torch.dtype) -> None:
    model = sharing("Qwen3").to(dtype)
    install(model, installing.lean())
    wanted = step(model)
    with counted() as made:
        assert_same_bits(step(model, remake=True), wanted)
    assert len(made) == 3


def test_layers_that_run_twice_keep_to_their_own_way() -> None:
    """Half of four layers: only the last two make anything again."""
    model = sharing("Llama", layers=4)
    install(model, installing.lean())
    wanted = step(model)
    tokens = pack(some_pairs()[:2]).tokens
    with counted() as made:
        assert_same_bits(step(model, budget=tokens // 2, remake=True), wanted)
    assert len(made) == 6


def adapted(family: str = "Llama", **changes: Any) -> Any:
    """A model with adapters that do something."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(sharing(family, layers=2, **changes), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_adapters(autocast: torch.dtype | None) -> None:
    """What comes before the first adapter needs no gradient, so the first norm is kept."""
    model = adapted()
    if autocast:
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data if "lora_" in name else parameter.data.to(autocast)
    install(model, installing.lean(), autocast)
    wanted = step(model, autocast=autocast)
    with counted() as made:
        found = step(model, autocast=autocast, remake=True)
    assert_same_bits(found, wanted)
    assert all("lora_" in name for name in found if name not in ("chosen", "rejected"))
    assert [shape[-1] for shape in made] == [96, 64, 64, 96, 64]


def test_adapters_take_what_autocast_would_give_them() -> None:
    """peft's own way, by float32, gives the same bits, and keeps more."""
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if "lora_" in name else parameter.data.bfloat16()
    found = step(model, autocast=torch.bfloat16)
    with mock.patch.object(policies, "_without_casts"):
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = True
        assert_same_bits(step(model, autocast=torch.bfloat16), found)


def test_passes_of_whole_sequences() -> None:
    model = tiny_model("Llama", num_hidden_layers=2)
    install(model, installing.lean())
    wanted = step(model, share=False)
    with counted() as made:
        assert_same_bits(step(model, share=False, remake=True), wanted)
    assert len(made) == 6


def test_sharded_weights_are_whole_again_when_they_are_needed(tmp_path: Path) -> None:
    """FSDP2 frees the weights between the passes: the norm is made again by those that are gathered."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = sharing("Llama", layers=2)
    install(model, installing.lean())
    wanted = step(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        policy = Policy(model, remake=True).train()
        for layer in policy.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(policy, mesh=mesh)
        freed: list[int] = []
        weights: list[Tensor] = []
        weight = model.model.layers[0].input_layernorm
        weight.register_forward_pre_hook(lambda module, _: weights.append(module.weight))
        model.zero_grad()
        with counted() as made:
            loss, chosen, rejected = policy(pack(some_pairs()[:2]), objective)
            freed = [w.untyped_storage().nbytes() for w in weights]
            loss.backward()
        gradients: dict[str, Any] = {n: p.grad for n, p in model.named_parameters()}
        found = {name: grad.full_tensor() for name, grad in gradients.items()}
    finally:
        dist.destroy_process_group()
    assert freed == [0]
    assert len(made) == 6
    assert_same_bits({"chosen": chosen, "rejected": rejected, **found}, wanted)


# --- one result ----------------------------------------------------------------------------------

NORMS = {"fused": norm.rms_norm, "lean": lean.rms_norm}
GATES = {"fused": swiglu.gated, "lean": lean.gated}


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def saved_by_a_product(result: Tensor) -> Tensor:
    """What a product that saves `result` gets back of it."""
    out = result * torch.ones((), requires_grad=True)
    back: Tensor = out.grad_fn._saved_self  # type: ignore[union-attr]
    return back


@pytest.mark.parametrize("form", [LLAMA, GEMMA, OLMO2])
@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_norm_has_its_bits_again(make: str, form: NormForm, dtype: torch.dtype) -> None:
    x, weight = leaves((2, 5, 33), (33,), dtype=dtype)
    for rows in (x, x.transpose(0, 1), x[:, ::2]):
        with remaking(), counted() as made:
            y = NORMS[make](rows, weight, 1e-6, form)
            again = saved_by_a_product(y)
        assert len(made) == 1
        assert torch.equal(again, y)
        assert again.stride() == y.stride()


@pytest.mark.parametrize("make", GATES)
@pytest.mark.parametrize("activation", swiglu.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gate_has_its_bits_again(make: str, activation: str, dtype: torch.dtype) -> None:
    gate, up = leaves((3, 7, 10), (3, 7, 10), dtype=dtype)
    for a, b in ((gate, up), (gate.transpose(0, 2), up.transpose(0, 2))):
        with remaking(), counted() as made:
            y = GATES[make](a, b, activation)
            again = saved_by_a_product(y)
        assert len(made) == 1
        assert torch.equal(again, y)
        assert again.stride() == y.stride()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda y: y,
    "rows": lambda y: y.view(-1, 12),
    "turned": lambda y: y.transpose(0, 1),
    "part": lambda y: y[:, 1:, ::3],
    "view of a view": lambda y: y.view(-1).view(2, 3, 12),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_of_a_result(view: Callable[[Tensor], Tensor]) -> None:
    x, weight = leaves((2, 3, 12), (12,))
    with remaking(), counted() as made:
        y = view(lean.rms_norm(x, weight, 1e-6))
        again = saved_by_a_product(y)
    assert len(made) == 1
    assert torch.equal(again, y)
    assert again.stride() == y.stride()


def changed(y: Tensor) -> Tensor:
    with torch.no_grad():
        y.mul_(3)
    return y


def changed_by_a_view(y: Tensor) -> Tensor:
    with torch.no_grad():
        y[0].zero_()
    return y


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "changed": changed,
    "changed by a view": changed_by_a_view,
    "changed with a gradient": lambda y: y.mul_(3),
    "another": lambda y: y * 3,
    "another dtype": lambda y: y.double(),
    "the same bits as another dtype": lambda y: y.view(torch.complex64),
    "without a gradient": lambda y: y.detach(),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_not_a_result_is_kept(other: Callable[[Tensor], Tensor]) -> None:
    x, weight = leaves((2, 3, 12), (12,))
    with remaking(), counted() as made:
        y = other(lean.rms_norm(x, weight, 1e-6))
        again = saved_by_a_product(y)
    assert made == []
    assert torch.equal(again, y)


def test_a_result_is_made_once_for_all_and_goes_with_the_last() -> None:
    x, weight = leaves((4, 12), (12,))
    seen: list[weakref.ref[Any]] = []
    live: list[bool] = []
    again = lean._norm_again

    def watched(ctx: Any) -> Tensor:
        result = again(ctx)
        seen.append(weakref.ref(result.untyped_storage()))
        return result

    def look(*_: Any) -> None:
        live.append(bool(seen) and seen[-1]() is not None)

    collecting = gc.isenabled()
    gc.disable()  # nothing may wait for the collector
    try:
        with mock.patch.object(lean, "_norm_again", watched), remaking():
            y = lean.rms_norm(x, weight, 1e-6)
            kept = weakref.ref(y.untyped_storage())
            branch = x * 2  # a part of the graph that is behind all products
            branch.register_hook(look)
            products = [y @ torch.randn(12, 5, requires_grad=True) for _ in range(3)]
            y.register_hook(look)
            total = sum(p.sum() for p in products) + (y.detach() * 0).sum() + branch.sum()
            del y, products
        assert kept() is None
        total.backward()
    finally:
        if collecting:
            gc.enable()
    assert len(seen) == 1
    assert live[-1] is False
    assert seen[0]() is None


def test_a_graph_that_is_kept_gives_the_same_twice() -> None:
    x, weight = leaves((4, 12), (12,))
    matrix = torch.randn(12, 5, requires_grad=True)
    with remaking():
        out = (lean.rms_norm(x, weight, 1e-6) @ matrix).square().sum()
    first = torch.autograd.grad(out, [x, weight, matrix], retain_graph=True)
    second = torch.autograd.grad(out, [x, weight, matrix])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("what", ["kept", "made again"])
def test_a_change_in_place_is_an_error_as_it_is_without_hooks(what: str) -> None:
    x, weight = leaves((4, 12), (12,))
    rows = x * 1
    with remaking():
        y = lean.rms_norm(rows, weight, 1e-6)
        out = (y if what == "made again" else y * 1) @ torch.randn(12, 5, requires_grad=True)
    with torch.no_grad():
        rows.mul_(2)
    with pytest.raises(RuntimeError, match=r"\(4, 12\) that the backward pass needs was changed in place"):
        out.sum().backward()


def test_nothing_is_marked_where_nothing_is_saved() -> None:
    x, weight = leaves((4, 12), (12,))
    with torch.no_grad(), remaking():
        assert lean.rms_norm(x, weight, 1e-6).grad_fn is None
    with torch.inference_mode(), remaking():
        y = remakeable(x * 2, lambda _: x)
    assert y.grad_fn is None
