"""Objectives: values and gradients at the start, finite differences, the paper's facts, TRL's own code."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clair_apo.errors import UsageError  # noqa: E402
from clair_apo.train.objectives import (  # noqa: E402
    OBJECTIVES,
    Objective,
    ObjectiveOptions,
    SequenceLogps,
    StepFacts,
)

TOKENS = (torch.tensor([5, 3, 8, 2]), torch.tensor([4, 6, 2, 7]))
FACTS = StepFacts(kl_chosen=0.7, kl_rejected=0.3, mean_chosen_tokens=4.5)
VARIANTS = [{"name": name} for name in OBJECTIVES]
VARIANTS += [{"name": n, "length_normalised": True, "beta": 2.0} for n in ("dpo", "apo-zero", "apo-down")]
VARIANTS += [{"name": "dpo", "label_smoothing": 0.2}, {"name": "apo-zero", "sft_weight": 0.3}]
VARIANTS += [{"name": "kto", "desirable_weight": 1.3, "undesirable_weight": 0.6, "sft_weight": 0.1}]


def logps(seed: int, scale: float = 3.0) -> SequenceLogps:
    random = torch.Generator().manual_seed(seed)
    draw = [-scale * torch.rand(4, generator=random, dtype=torch.float64) - 1 for _ in range(2)]
    return SequenceLogps(*draw)


def run(
    options: dict[str, Any],
    policy: SequenceLogps,
    reference: SequenceLogps,
    tokens: Any = TOKENS,
    facts: StepFacts = FACTS,
) -> tuple[Any, Any, Any]:
    """Losses, and their gradients in the chosen and the rejected log-probabilities."""
    chosen = policy.chosen.clone().requires_grad_()
    rejected = policy.rejected.clone().requires_grad_()
    objective = Objective(ObjectiveOptions(**options))
    losses = objective.losses(SequenceLogps(chosen, rejected), reference, tokens, facts)
    grads = torch.autograd.grad(losses.sum(), (chosen, rejected), allow_unused=True)
    return losses.detach(), *(torch.zeros_like(chosen) if g is None else g for g in grads)


def log_ratios(chosen: list[float], rejected: list[float]) -> tuple[SequenceLogps, SequenceLogps]:
    """Policy and reference with these log-ratios, of which the reference's part is 0."""
    policy = [torch.tensor(x, dtype=torch.float64) for x in (chosen, rejected)]
    return SequenceLogps(*policy), SequenceLogps(*(torch.zeros_like(x) for x in policy))


@pytest.mark.parametrize(
    ("name", "loss", "chosen", "rejected"),
    [
        ("apo-zero", 1, -0.25, 0.25),
        ("apo-down", 1, 0, 0.25),
        ("dpo", math.log(2), -0.5, 0.5),
        ("kto-pair", 0.5, -0.125, 0.125),
        ("kto", 0.5, -0.125, 0.125),
        ("apo-zero-unpaired", 0.5, -0.125, 0.125),
    ],
)
def test_the_start(name: str, loss: float, chosen: float, rejected: float) -> None:
    same = logps(0)
    losses, by_chosen, by_rejected = run({"name": name}, same, same, facts=StepFacts())
    assert losses.tolist() == pytest.approx([loss] * 4, abs=1e-15)
    assert by_chosen.tolist() == pytest.approx([0.1 * chosen] * 4, abs=1e-15)
    assert by_rejected.tolist() == pytest.approx([0.1 * rejected] * 4, abs=1e-15)
    assert Objective(ObjectiveOptions(name)).initial_loss == pytest.approx(loss)


def test_a_first_loss_that_depends_on_the_data_is_not_told() -> None:
    for options in ({"name": "sft"}, {"sft_weight": 1.0}, {"name": "kto", "desirable_weight": 2.0}):
        assert Objective(ObjectiveOptions(**options)).initial_loss is None


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    objective, reference, policy = Objective(ObjectiveOptions(**options)), logps(1), logps(2)

    def losses(chosen: Any, rejected: Any) -> Any:
        return objective.losses(SequenceLogps(chosen, rejected), reference, TOKENS, FACTS)

    inputs = (policy.chosen.requires_grad_(), policy.rejected.requires_grad_())
    assert torch.autograd.gradcheck(losses, inputs)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_row_does_not_depend_on_the_others(options: dict[str, Any]) -> None:
    policy, reference = logps(3), logps(4)
    whole = run(options, policy, reference)
    for i in range(4):
        one = [SequenceLogps(x.chosen[i : i + 1], x.rejected[i : i + 1]) for x in (policy, reference)]
        alone = run(options, one[0], one[1], tuple(t[i : i + 1] for t in TOKENS))
        for part, expected in zip(alone, whole, strict=True):
            assert part.item() == expected[i].item()


def test_apo_down_is_neutral_for_the_chosen_where_r_l_is_twice_r_w() -> None:
    # |m| > |r_w| pushes the chosen answer down, |m| < |r_w| up; the rejected one always goes down.
    _, chosen, rejected = run({"name": "apo-down"}, *log_ratios([8.0] * 4, [16.0, -30.0, 10.0, 20.0]))
    assert chosen[0].item() == pytest.approx(0, abs=1e-17)
    assert chosen[1].item() > 0
    assert chosen[2].item() < 0
    assert chosen[3].item() > 0
    assert (rejected > 0).all()


def test_updates_of_apo_fade_and_those_of_dpo_on_misranked_pairs_do_not() -> None:
    far = log_ratios([-400.0] * 4, [400.0] * 4)
    for name in ("apo-zero", "apo-down"):
        assert run({"name": name}, *far)[1].abs().max() < 1e-15
    assert run({"name": "dpo"}, *far)[1].tolist() == pytest.approx([-0.1] * 4)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_ratios_stay_finite(options: dict[str, Any], dtype: Any) -> None:
    ends = log_ratios([1e6, -1e6, 1e6, -1e6], [1e6, -1e6, -1e6, 1e6])
    policy, reference = (SequenceLogps(x.chosen.to(dtype), x.rejected.to(dtype)) for x in ends)
    for part in run(options, policy, reference):
        assert part.dtype == dtype
        assert torch.isfinite(part).all()


def test_small_losses_keep_their_digits() -> None:
    policy, reference = log_ratios([500.0] * 4, [-500.0] * 4)
    losses, *_ = run({"name": "apo-zero"}, policy, reference)
    assert losses.tolist() == pytest.approx([2 * math.exp(-50)] * 4, rel=1e-12)


def test_rows_without_one_of_the_answers() -> None:
    policy, reference = logps(5), logps(6)
    tokens = (torch.tensor([5, 0, 8, 0]), torch.tensor([4, 6, 0, 0]))
    losses, chosen, rejected = run({"name": "kto"}, policy, reference, tokens)
    c, r = ((policy.chosen - reference.chosen).numpy(), (policy.rejected - reference.rejected).numpy())
    wanted, unwanted = 1 - s(0.1 * (c - 0.7)), 1 - s(0.1 * (0.7 - r))
    assert losses.tolist() == pytest.approx([(wanted[0] + unwanted[0]) / 2, unwanted[1], wanted[2], 0])
    assert (chosen != 0).tolist() == [True, False, True, False]
    assert (rejected != 0).tolist() == [True, True, False, False]


def s(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def test_what_trl_has_not_against_numpy() -> None:
    policy, reference = logps(7, 30), logps(8, 30)
    c, r = ((policy.chosen - reference.chosen).numpy(), (policy.rejected - reference.rejected).numpy())
    expected = {
        "kto-pair": ((1 - s(0.1 * (c - 0.3))) + (1 - s(0.1 * (0.7 - r)))) / 2,
        "dpo": -0.8 * np.log(s(0.1 * (c - r))) - 0.2 * np.log(s(0.1 * (r - c))),
    }
    for name, losses in expected.items():
        options = {"name": name, "label_smoothing": 0.2 if name == "dpo" else 0.0}
        assert run(options, policy, reference)[0].tolist() == pytest.approx(losses.tolist(), rel=1e-12)
    # normalised APO: the plain form on log-ratios a token
    per_token = [x / t.numpy() for x, t in zip((c, r), TOKENS, strict=True)]
    tokenwise = log_ratios(per_token[0].tolist(), per_token[1].tolist())
    for name in ("apo-zero", "apo-down"):
        plain, *_ = run({"name": name, "beta": 2.0}, *tokenwise)
        ours, *_ = run({"name": name, "beta": 2.0, "length_normalised": True}, policy, reference)
        assert ours.tolist() == pytest.approx(plain.tolist(), rel=1e-12)


def test_rewards_are_what_the_loss_sees() -> None:
    policy, reference = logps(9), logps(10)
    chosen, rejected = Objective(ObjectiveOptions()).rewards(policy, reference, TOKENS)
    assert torch.equal(chosen, 0.1 * (policy.chosen - reference.chosen))
    assert torch.equal(rejected, 0.1 * (policy.rejected - reference.rejected))
    options = ObjectiveOptions(length_normalised=True)
    assert torch.allclose(Objective(options).rewards(policy, reference, TOKENS)[0], chosen / TOKENS[0])
    assert Objective(ObjectiveOptions("sft")).rewards(policy, None, TOKENS)[0].tolist() == [0] * 4


@pytest.mark.parametrize(
    "options",
    [
        {"name": "ppo"},
        {"beta": 0.0},
        {"beta": math.nan},
        {"label_smoothing": 0.1},
        {"name": "dpo", "label_smoothing": 0.5},
        {"sft_weight": -1.0},
        {"name": "sft", "sft_weight": 1.0},
        {"name": "kto", "length_normalised": True},
        {"desirable_weight": 2.0},
        {"name": "kto", "undesirable_weight": 0.0},
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ObjectiveOptions(**options)


class _Outputs(SimpleNamespace):
    """What TRL's fused head gives: log-probabilities of tokens, and things that it only logs."""


def _masks(counts: Any) -> Any:
    """A prompt of two tokens, then the answer, then padding: [P, 12]."""
    place = torch.arange(12)
    return ((place >= 2) & (place < 2 + counts[:, None])).long()


def _trainer(**more: Any) -> Any:
    """As much of a trainer as its loss reads."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x
        ),
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **more,
    )


def _model(per_token: Any) -> Any:
    def call(**_: Any) -> _Outputs:
        zeros = torch.zeros_like(per_token)
        return _Outputs(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    return call


def _spread(answers: Any, masks: Any) -> Any:
    """The log-probabilities of answers over their tokens, [P, 11]."""
    shifted = masks[:, 1:].double()
    return shifted * (answers / shifted.sum(1))[:, None]


def trl_dpo(
    kind: str, beta: float, policy: SequenceLogps, reference: SequenceLogps
) -> tuple[Any, Any, Any]:
    """Loss and gradients by `DPOTrainer._compute_loss` itself."""
    from trl import DPOTrainer

    chosen, rejected = policy.chosen.clone().requires_grad_(), policy.rejected.clone().requires_grad_()
    masks = _masks(torch.cat(TOKENS))
    trainer = _trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
    )
    inputs = {
        "input_ids": torch.zeros_like(masks),
        "attention_mask": torch.ones_like(masks),
        "completion_mask": masks,
        "ref_chosen_logps": reference.chosen,
        "ref_rejected_logps": reference.rejected,
    }
    per_token = _spread(torch.cat([chosen, rejected]), masks)
    loss = DPOTrainer._compute_loss(trainer, _model(per_token), inputs, False)
    grads = torch.autograd.grad(loss, (chosen, rejected), allow_unused=True)
    return loss, *(torch.zeros(4, dtype=torch.float64) if g is None else g for g in grads)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sigmoid", {"name": "dpo"}),
        ("sigmoid_norm", {"name": "dpo", "length_normalised": True, "beta": 2.0}),
        ("apo_zero", {"name": "apo-zero"}),
        ("apo_down", {"name": "apo-down"}),
        ("sft", {"name": "sft"}),
    ],
)
def test_pairs_as_trl_has_them(kind: str, options: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    policy, reference = logps(11, 40), logps(12, 40)
    facts = StepFacts(mean_chosen_tokens=TOKENS[0].double().mean().item())
    losses, *grads = run(options, policy, reference, facts=facts)
    loss, *expected = trl_dpo(kind, options.get("beta", 0.1), policy, reference)
    assert losses.mean().item() == pytest.approx(loss.item(), abs=1e-12)
    for ours, theirs in zip(grads, expected, strict=True):
        assert (ours / 4).tolist() == pytest.approx(theirs.tolist(), abs=1e-12)


@pytest.mark.parametrize("name", ["kto", "apo-zero-unpaired"])
def test_single_answers_as_trl_has_them(name: str) -> None:
    pytest.importorskip("trl")
    from trl import KTOTrainer

    policy, reference, mismatched = logps(13, 40), logps(14, 40), logps(15, 40)
    kl = max(0.0, (mismatched.chosen - mismatched.rejected).mean().item())
    assert kl > 0
    label = torch.tensor([True, False, False, True])
    tokens = tuple(t * there for t, there in zip(TOKENS, (label, ~label), strict=True))
    ours, *_ = run(
        {"name": name, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        policy,
        reference,
        tokens,
        StepFacts(kl_chosen=kl),
    )
    masks = _masks(tokens[0] + tokens[1])
    trainer = _trainer(
        loss_type=name.replace("-", "_"),
        calculate_KL=name == "kto",
        beta=0.1,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        _compute_kl_logps=lambda *_: mismatched.chosen,
    )
    inputs = {
        "input_ids": torch.zeros_like(masks),
        "attention_mask": torch.ones_like(masks),
        "completion_mask": masks,
        "label": label,
        "ref_logps": torch.where(label, reference.chosen, reference.rejected),
        "ref_KL_logps": mismatched.rejected,
    }
    per_token = _spread(torch.where(label, policy.chosen, policy.rejected), masks)
    loss = KTOTrainer._compute_loss(trainer, _model(per_token), inputs, False)
    assert ours.mean().item() == pytest.approx(loss.item(), abs=1e-12)
