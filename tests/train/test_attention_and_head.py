"""Shared prefixes, attention and head against separate passes of the model as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, VOCABULARY, some_pairs, tiny_model

from clair_apo.errors import ClairError, UsageError
from clair_apo.train import attention, naive
from clair_apo.train.head import HeadShape, pair_losses, token_logps
from clair_apo.train.load import sharing
from clair_apo.train.model_config import uneven
from clair_apo.train.options import TrainOptions
from clair_apo.train.packing import Branches, pack
from clair_apo.train.policy import Policy, without_dropout

attention.register()


def objective(chosen: torch.Tensor, rejected: torch.Tensor, part: slice) -> torch.Tensor:
    """Separable, not linear, and different for each pair."""
    factors = torch.arange(1, 7, dtype=torch.float64)[part]
    return factors * (torch.tanh(chosen / 50) - 0.7 * torch.tanh(rejected / 40))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [True, False])
def test_log_probabilities_and_gradients_are_those_of_separate_passes(family: str, share: bool) -> None:
    pairs = some_pairs()
    model = tiny_model(family)
    chosen, rejected = naive.answer_logps(model, pairs)
    expected = objective(chosen, rejected, slice(0, len(pairs))).sum()
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()

    if share:
        model.set_attn_implementation(attention.PLAIN)
    policy = Policy(model, share=share)
    loss, of_chosen, of_rejected = policy(pack(pairs, share=share), objective)
    loss.backward()
    torch.testing.assert_close(of_chosen, chosen.detach(), rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(of_rejected, rejected.detach(), rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-6)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # Sums in another order: float32 noise of the largest numbers, more or less of it by CPU.
        noise = 1e-5 + 2e-5 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=noise, msg=name)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_flex_equals_plain(family: str) -> None:
    """Forward only: on a CPU FlexAttention has no backward pass."""
    model = tiny_model(family)
    batch = pack(some_pairs())
    found = []
    for name in (attention.PLAIN, attention.FLEX):
        model.set_attn_implementation(name)
        with torch.no_grad():
            found.append(Policy(model).hidden(batch))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_varlen_gathers_what_plain_attends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real call needs CUDA; here a plain stand-in runs on the same layout."""

    def stand_in(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        of_q: torch.Tensor,
        of_k: torch.Tensor,
        longest_q: int,
        longest_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> torch.Tensor:
        assert window_size == (-1, 0)
        assert enable_gqa
        assert longest_q == int(of_q.diff().max())
        assert longest_k == int(of_k.diff().max())
        out = []
        for (a, b), (c, d) in zip(of_q.unfold(0, 2, 1), of_k.unfold(0, 2, 1), strict=True):
            mask = torch.ones(int(b - a), int(d - c), dtype=torch.bool).tril(int(d - c) - int(b - a))
            one = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])),
                attn_mask=mask,
                scale=scale,
                enable_gqa=True,
            )
            out.append(one[0].transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    model = tiny_model("Llama")
    batch = pack(some_pairs())
    found = []
    for name in (attention.PLAIN, attention.VARLEN):
        model.set_attn_implementation(name)
        with torch.no_grad():
            found.append(Policy(model).hidden(batch))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [attention.PLAIN, attention.FLEX, attention.VARLEN])
def test_under_autocast_attention_gets_one_dtype_and_no_mask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Angles in float32 make queries and keys float32 there, and values are bfloat16."""
    seen: list[torch.dtype] = []

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.extend(x.dtype for x in (q, k, v))
        return q

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert args[4] is None  # transformers made no mask
        assert args[1].dtype == args[2].dtype == torch.float32
        return attention_function(*args, **kwargs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    monkeypatch.setattr("torch.nn.attention.flex_attention.flex_attention", stand_in)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", stand_in)
    model = tiny_model("Llama")
    attention_function = transformers.AttentionInterface()[name]
    transformers.AttentionInterface.register("watched", watched)
    model.set_attn_implementation("watched")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        Policy(model).hidden(pack(some_pairs()))
    assert set(seen) == {torch.bfloat16}


def test_a_mask_keeps_off_cudnn() -> None:
    with attention._without_cudnn():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_deterministic_algorithms_are_asked_for_within_one_backward_pass_only() -> None:
    during: list[bool] = []

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            during.append(torch.are_deterministic_algorithms_enabled())
            return grads[0]

    x = torch.zeros(2, requires_grad=True)
    out = Attention.apply(x)
    attention._ask_for_fixed_order(out.grad_fn)
    (2 * out).sum().backward()
    assert during == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("Llama", {}, None),
        ("Qwen3", {"head_dim": 256}, None),
        ("Qwen3", {"head_dim": 264}, "these are 264"),
        ("Qwen3", {"head_dim": 12}, "these are 12"),
        ("Gemma2", {}, "no soft cap"),
    ],
)
def test_what_varlen_cannot_do_is_known_beforehand(
    family: str, changes: dict[str, Any], word: str | None
) -> None:
    why = attention.no_varlen(tiny_model(family, **changes).config)
    assert (why is None) if word is None else (word in str(why))


@pytest.mark.parametrize(
    ("keys", "values", "word"),
    [
        ((16, 16), 32, None),
        ((16, 8), 24, "wide and at most 256, and these are 24"),
        ((16, 16), 16, "of 16 "),
    ],
)
def test_latent_attention_goes_by_its_real_widths(
    keys: tuple[int, int], values: int, word: str | None
) -> None:
    """`head_dim` in the config of a DeepSeek model is a part of what its heads have."""
    config = transformers.DeepseekV3Config(
        qk_nope_head_dim=keys[0], qk_rope_head_dim=keys[1], v_head_dim=values
    )
    why = uneven(config, 16, most=256)
    assert (why is None) if word is None else (word in str(why))
    assert attention.no_varlen(transformers.DeepseekV3Config()) is not None  # 192 and 128


def layers_that_differ(wide: int = 32, window: int = 64) -> Any:
    """The config of a Gemma 4: every other layer has heads of its own width."""
    config = getattr(transformers, "Gemma4TextConfig", None)
    if config is None:
        pytest.skip("this transformers has no Gemma 4")
    return config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=wide,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=window,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )


def test_layers_that_differ_are_looked_at_one_by_one() -> None:
    assert attention.no_varlen(layers_that_differ()) is None
    assert "these are 512" in str(attention.no_varlen(layers_that_differ(512)))
    assert attention.shares(layers_that_differ(), 64) is None
    assert "looks back 8 tokens" in str(attention.shares(layers_that_differ(window=8), 64))
    model = transformers.Gemma4ForCausalLM(layers_that_differ())
    pairs = some_pairs()
    with torch.no_grad():
        wanted = naive.answer_logps(model, pairs)
        assert sharing(model, TrainOptions("m", "p", "o"), 60, torch.device("cpu")) == (True, None)
        _, *found = Policy(model)(pack(pairs), objective)
    torch.testing.assert_close(found, list(wanted), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "name"), [("SeedOss", "residual_dropout"), ("GPTBigCode", "attn_pdrop")]
)
def test_no_dropout_is_left_whatever_its_name(family: str, name: str) -> None:
    model = tiny_model(family, **{name: 0.5})
    without_dropout(model)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_an_old_varlen_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(query: Any, key: Any, value: Any, is_causal: bool = False) -> None: ...

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old)
    assert "too old" in str(attention.no_varlen(tiny_model("Llama").config))


@pytest.mark.parametrize(
    ("family", "device", "flags", "chosen"),
    [
        ("Gemma2", "cpu", {}, attention.PLAIN),
        ("Llama", "cuda", {}, attention.VARLEN),
        ("Llama", "cuda", {"dtype": "float32"}, attention.FLEX),
        ("Gemma2", "cuda", {}, attention.FLEX),
        ("Gemma2", "cuda", {"attention": "plain"}, attention.PLAIN),
        ("Gemma2", "cuda", {"attention": "varlen"}, "no soft cap of attention scores; flex is"),
        ("Llama", "cuda", {"attention": "varlen", "dtype": "float32"}, "computes in bfloat16; flex is"),
    ],
)
def test_no_mask_is_made_on_cuda_unless_asked_for(
    family: str, device: str, flags: dict[str, Any], chosen: str
) -> None:
    model = tiny_model(family)
    options = TrainOptions("m", "p", "o", **flags)
    if "flex is" in chosen:
        with pytest.raises(UsageError, match=chosen):
            sharing(model, options, 32, torch.device(device))
        return
    assert sharing(model, options, 32, torch.device(device)) == (True, None)
    assert model.config._attn_implementation == chosen


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"family": "Mistral", "sliding_window": 8}, "looks back 8 tokens"),
        ({"family": "Mistral", "sliding_window": 64}, None),
        ({"family": "Gemma2", "sliding_window": 8}, "looks back 8 tokens"),
        ({"family": "Qwen2", "sliding_window": 8, "use_sliding_window": False}, None),
        ({"family": "Llama"}, None),
    ],
)
def test_a_window_shorter_than_the_sequences_is_not_shared(
    changes: dict[str, Any], word: str | None
) -> None:
    why = attention.shares(tiny_model(**changes).config, 64)
    assert (why is None) if word is None else (word in str(why))


def test_a_model_that_drops_its_arguments_is_refused() -> None:
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ClairError, match="--no-share"):
        attention.plain(torch.nn.Identity(), query, query, query, None)
    other = (Branches(0, 1, 1, 2),)  # of 4 tokens, where it attends to 3
    with pytest.raises(ClairError, match=r"as they lie.*--no-share"):
        attention.plain(torch.nn.Identity(), query, query, query, None, branches=other)


def test_what_comes_of_attention_is_contiguous_as_models_expect() -> None:
    query = torch.zeros(1, 2, 6, 4)
    branches = (Branches(0, 2, 2, 2),)
    out, _ = attention.plain(torch.nn.Identity(), query, query, query, None, branches=branches)
    assert out.view(1, 6, 8).shape == (1, 6, 8)  # JetMoe and AFMoE do so


@pytest.mark.parametrize("budget", [None, 1, 30, 50, 1000])
def test_running_layers_twice_changes_nothing(budget: int | None) -> None:
    model = tiny_model("Llama")
    model.set_attn_implementation(attention.PLAIN)
    model.train()
    policy = Policy(model, budget=budget)
    batch = pack(some_pairs())
    policy(batch, objective)[0].backward()
    found = gradients(model)
    twice = [layer.gradient_checkpointing for layer in policy.layers]
    kept = {None: 3, 1: 0, 30: 1, 50: 2, 1000: 3}[budget]
    assert twice == [True] * (3 - kept) + [False] * kept
    if budget is not None:
        model.zero_grad()
        Policy(model)(batch, objective)[0].backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("shape", [HeadShape(), HeadShape(0.3, None), HeadShape(1.7, 5.0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_token_logps_equals_full_logits(shape: HeadShape, bias: bool, chunk_rows: int) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = torch.randn(VOCABULARY, 16, requires_grad=True)
    offset = torch.randn(VOCABULARY, requires_grad=True) if bias else None
    targets = torch.randint(VOCABULARY, (23,))
    leaves = [x for x in (hidden, weight, offset) if x is not None]
    upstream = torch.randn(23)

    expected = naive.token_logps(hidden, weight, targets, offset, shape.scale, shape.softcap)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    found = token_logps(hidden, weight, targets, offset, shape, 4 * VOCABULARY * chunk_rows)
    got = torch.autograd.grad(found, leaves, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_rows", [1, 9, 1000])
def test_gradients_of_the_forward_pass_equal_those_of_autograd(chunk_rows: int) -> None:
    torch.manual_seed(2)
    batch = pack(some_pairs())
    count = len(batch.targets)
    hidden = torch.randn(count, 16, requires_grad=True)
    weight = torch.randn(VOCABULARY, 16, requires_grad=True)
    loss, chosen, rejected = pair_losses(
        hidden, weight, batch.targets, batch.entries, objective, chunk_bytes=4 * VOCABULARY * chunk_rows
    )
    got = torch.autograd.grad(loss, (hidden, weight))

    logps = naive.token_logps(hidden, weight, batch.targets).double()
    sums = []
    for start, shared, own, other in batch.entries:
        both, split = logps[start : start + shared].sum(), start + shared + own
        sums.append((both + logps[start + shared : split].sum(), both + logps[split : split + other].sum()))
    of_chosen, of_rejected = (torch.stack(side) for side in zip(*sums, strict=True))
    expected = objective(of_chosen, of_rejected, slice(0, len(sums))).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(chosen, of_chosen.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(rejected, of_rejected.detach(), rtol=1e-6, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_scaled_afterwards_is_refused() -> None:
    batch = pack(some_pairs())
    hidden = torch.randn(len(batch.targets), 16, requires_grad=True)
    weight = torch.randn(VOCABULARY, 16)
    loss, _, _ = pair_losses(hidden, weight, batch.targets, batch.entries, objective)
    with pytest.raises(RuntimeError):
        (2 * loss).backward()


def test_bfloat16_gradients_are_added_within_the_stated_bound() -> None:
    """docs/training.md: each microbatch rounds the sum once more, by at most 2**-8 of it."""
    pairs = some_pairs()
    model = tiny_model("Llama").to(torch.bfloat16)
    model.set_attn_implementation(attention.PLAIN)
    policy = Policy(model)
    one_by_one: dict[str, torch.Tensor] = {}
    for number, pair in enumerate(pairs):
        model.zero_grad()
        policy(pack([pair]), lambda c, r, _, i=number: objective(c, r, slice(i, i + 1)))[0].backward()
        for name, gradient in gradients(model).items():
            one_by_one[name] = one_by_one.get(name, 0) + gradient.float()
    model.zero_grad()
    for number, pair in enumerate(pairs):
        policy(pack([pair]), lambda c, r, _, i=number: objective(c, r, slice(i, i + 1)))[0].backward()
    differences = [
        float((found.float() - one_by_one[name]).norm() / one_by_one[name].norm())
        for name, found in gradients(model).items()
    ]
    assert 0 < max(differences) <= len(pairs) * 2**-8
