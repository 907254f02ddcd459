"""The lines of a plan beyond full training in one process: adapters, a live reference, FSDP and DDP."""

from __future__ import annotations

from typing import Any

import pytest
from memory_truth import (
    QWEN_1_5B,
    deep,
    of_plan,
    options,
    plan,
    replicated_truth,
    revisions,
    sharded_truth,
    truth,
)

from clair_apo.train.memory.account import GIB, Spread
from clair_apo.train.packing import pack

# Four layers of 8B; the same with so few words that layers decide, not what stands around them.
LARGE, FEW_WORDS = deep(4), deep(4, vocab_size=8192)
TIED = deep(4, QWEN_1_5B)


def flags(budget: int, **more: Any) -> dict[str, Any]:
    return {"tokens_per_microbatch": 4095, "activation_budget": budget, **more}


@pytest.mark.parametrize(
    ("budget", "more"),
    [(2048, {"lora_rank": 16}), (4095, {"reference": "live"})],
    ids=["adapters", "live reference"],
)
def test_one_process(budget: int, more: dict[str, Any]) -> None:
    found = plan(LARGE, 200.0, longest=1239, **flags(budget, **more))
    expected = truth(pack(revisions()), options(**flags(budget, **more)), budget, LARGE)
    assert of_plan(found) == pytest.approx(expected["Total"], rel=0.03)
    held = found.standing.weights + found.standing.reference
    assert held / GIB == pytest.approx(expected["PARAM"], rel=1e-3)
    assert found.standing.gradients / GIB == pytest.approx(expected["GRAD"], rel=1e-3)
    assert bool(found.standing.reference) == ("reference" in more)


@pytest.mark.parametrize(
    ("config", "count", "budget", "more"),
    [
        (LARGE, 8, 4095, {}),  # in the backward pass
        (LARGE, 8, 1, {}),  # at its end
        (LARGE, 8, 1, {"lora_rank": 16}),  # before the first layer
        (FEW_WORDS, 8, 2048, {"lora_rank": 64}),  # at the head
        (FEW_WORDS, 8, 1, {}),  # in a layer that runs once more
        (LARGE, 8, 4095, {"reference": "live"}),
    ],
    ids=["whole", "twice", "adapters, twice", "adapters", "few words, twice", "live reference"],
)
def test_shards(config: Any, count: int, budget: int, more: dict[str, Any]) -> None:
    """At each of the moments that may be the highest."""
    given = flags(budget, **more)
    found = plan(config, 200.0, longest=1239, spread=Spread(count, sharded=True), **given)
    expected = sharded_truth(pack(revisions()), options(**given), budget, config, count)
    assert of_plan(found) == pytest.approx(expected["Total"], rel=0.03)
    assert found.standing.weights / GIB == pytest.approx(expected["SHARDED_PARAM"], rel=2e-3)
    assert found.standing.gradients / GIB == pytest.approx(expected["SHARDED_GRAD"], rel=2e-3)


@pytest.mark.parametrize("more", [{}, {"lora_rank": 16}], ids=["whole", "adapters"])
def test_replicas(more: dict[str, Any]) -> None:
    """With gradients of the microbatch before beside the buckets."""
    given = flags(4095, **more)
    batch = pack(revisions(shorter=4))  # what is scored fills the head's chunk
    found = plan(TIED, 200.0, longest=1239, spread=Spread(2), **given)
    expected = replicated_truth(batch, options(**given), 4095, TIED, 2)
    assert of_plan(found) == pytest.approx(expected["Total"], rel=0.03)
    assert found.standing.buckets / GIB == pytest.approx(expected["buckets"], rel=1e-3)
    assert found.standing.gradients / GIB == pytest.approx(expected["GRAD"], rel=1e-3)
