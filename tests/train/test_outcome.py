"""What a run's metrics say of what its objective promises."""

from __future__ import annotations

import math

import pytest
import runs

from clair_apo.train.outcome import OPEN, PROMISES, changes, formula, outcome, terms, written

ENDS = {"apart": (8.0, -22.0), "down": (-6.0, -25.0), "falls": (-25.0, -6.0), "up": (20.0, 4.0)}


@pytest.mark.parametrize("evaluations", [0, 5])
@pytest.mark.parametrize(
    ("objective", "ends", "kept"),
    [
        ("apo-zero", "apart", True),
        ("apo-zero", "down", False),
        ("apo-down", "down", True),
        ("apo-down", "falls", False),
        ("apo-down", "apart", False),
        ("dpo", "down", None),
        ("dpo", "apart", None),
        ("kto-pair", "apart", True),
        ("kto", "up", False),
        ("apo-zero-unpaired", "apart", True),
        ("sft", "up", True),
        ("sft", "apart", True),
        ("sft", "down", False),
    ],
)
def test_what_moved_is_held_against_the_promise(
    objective: str, ends: str, kept: bool | None, evaluations: int
) -> None:
    chosen, rejected = ENDS[ends]
    records = runs.metrics(200, chosen=chosen, rejected=rejected, evaluations=evaluations, noise=0.5)
    found = outcome(records, objective)
    assert found.kept is kept
    assert found.held_out is bool(evaluations)
    assert (found.chosen_way, found.rejected_way) == (math.copysign(1, chosen), math.copysign(1, rejected))
    assert objective in found.text


def test_held_out_pairs_have_the_last_word() -> None:
    records = [*runs.metrics(50, evaluations=0)]
    records.append({"step": 50, "eval_logps/chosen_relative": -3.0, "eval_logps/rejected_relative": -4.0})
    found = outcome(records, "apo-zero")
    assert (found.held_out, found.kept, found.chosen) == (True, False, -3.0)


def test_noise_is_no_movement() -> None:
    found = outcome(runs.metrics(100, chosen=0.0, rejected=-22, evaluations=0, noise=4.0), "apo-zero")
    assert (found.chosen_way, found.kept) == (OPEN, None)
    assert "hardly moved" in found.text
    assert "too little to say" in found.text
    still = outcome(runs.metrics(1, evaluations=0), "apo-zero")
    assert (still.chosen, still.rejected, still.kept) == (0.0, 0.0, None)


def test_nothing_measured_is_said() -> None:
    assert "no log-probabilities" in outcome([{"step": 1, "loss": 2.0}], "sft").text
    assert "no log-probabilities" in outcome([], "apo-zero").text


def test_only_one_side_was_there() -> None:
    found = outcome([{"step": 1, "logps/chosen_relative": 4.0}], "kto")
    assert (found.rejected, found.kept) == (None, True)


def test_both_ends_of_a_metric() -> None:
    records = [{"step": n, "loss": float(n), "grad_norm": None if n > 5 else 1.0} for n in range(1, 21)]
    records.append({"step": 20, "eval_loss": 7.0})
    loss, norm = changes(records, ["loss", "kl", "grad_norm"])
    assert (loss.first, loss.last, loss.held_out) == (1.0, 19.5, 7.0)
    assert (norm.name, norm.first, norm.last, norm.held_out) == ("grad_norm", 1.0, None, None)


def test_the_formula_says_what_the_settings_add() -> None:
    facts = runs.facts(runs.metrics(3))
    assert formula(facts) == "1 − σ(r_c) + σ(r_r)"
    assert terms(facts) == "r = β log(π(y|x) / π_ref(y|x)), β = 0.1"
    facts["settings"] |= {"sft_weight": 0.5, "length_normalised": True}
    assert formula(facts).endswith(" + 0.5 SFT")
    assert "/ tokens" in terms(facts)
    facts = runs.facts(runs.metrics(3), "dpo")
    facts["settings"]["label_smoothing"] = 0.1
    assert "ε = 0.1" in formula(facts)
    assert formula({"objective": "sft"}) == "−log π(y_c|x) / tokens"
    facts = runs.facts(runs.metrics(3), "kto")
    facts["settings"] |= {"desirable_weight": 1.5, "undesirable_weight": 1.0}
    assert formula(facts).endswith("if rejected, times 1.5 and 1")
    assert all(one.formula for one in PROMISES.values())


@pytest.mark.parametrize(
    ("form", "value", "said"),
    [
        ("{:+.2f}", -0.001, "0.00"),
        ("{:+.2f}", 0.001, "0.00"),
        ("{:+.2f}", -1.5, "-1.50"),
        ("{:.1%}", 0.5, "50.0%"),
    ],
)
def test_what_rounds_to_nothing_has_no_sign(form: str, value: float, said: str) -> None:
    assert written(form, value) == said


def test_the_formulas_are_those_of_the_losses() -> None:
    """Read as Python, each formula gives what the objective computes."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("clair_apo.train.objectives")
    Objective, ObjectiveOptions = module.Objective, module.ObjectiveOptions
    SequenceLogps, StepFacts = module.SequenceLogps, module.StepFacts

    policy, reference = (-30.0, -41.0), (-33.0, -37.0)
    tokens = (11, 17)
    facts = StepFacts(kl_chosen=1.5, kl_rejected=0.5, mean_chosen_tokens=11.0)
    for name in PROMISES:
        objective = Objective(ObjectiveOptions(name=name, beta=0.1))
        sides = SequenceLogps(*(torch.tensor([x], dtype=torch.float64) for x in policy))
        other = SequenceLogps(*(torch.tensor([x], dtype=torch.float64) for x in reference))
        counts = [torch.tensor([x]) for x in tokens]
        text = formula({"objective": name})
        if objective.unpaired:  # a row has one answer: the part before the comma is the chosen one's
            text = text.split(" if ")[0]
            sides.rejected[:] = other.rejected[:] = 0.0
            counts[1] = torch.tensor([0])
        code = text.replace("−", "-").replace("π(y_c|x)", "pi").replace("[", "(").replace("]", ")")
        code = code.replace("-log", "-1 * log").replace("log pi", "log(pi)").replace("log σ(", "log_σ(")
        values = {
            "σ": lambda x: 1 / (1 + math.exp(-x)),
            "log_σ": lambda x: -math.log1p(math.exp(-x)),
            "log": lambda x: x,  # of π, which is given as its logarithm
            "pi": policy[0],
            "tokens": tokens[0],
            "r_c": 0.1 * 3,
            "r_r": 0.1 * -4,
            "r": 0.1 * 3,
            "KL_c": 1.5,
            "KL_r": 0.5,
            "KL": 1.5,
            "β": 0.1,
        }
        code = code.replace("β KL", "β * KL")
        expected = eval(code, {}, values)
        found = float(objective.losses(sides, other, (counts[0], counts[1]), facts)[0])
        assert found == pytest.approx(expected, abs=1e-12), (name, code)
