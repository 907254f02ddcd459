from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo.train.plan import Plan

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(1, 12), st.integers(1, 100), st.integers(1, 4), st.integers(0, 3))
def test_every_pair_counts_once_an_epoch_and_processes_keep_step(
    tokens: list[int], batch: int, budget: int, processes: int, seed: int
) -> None:
    plan = Plan(tokens, batch, budget, seed, processes)
    total = 2 * plan.steps_per_epoch
    runs = [list(plan.steps(0, total, process)) for process in range(processes)]
    for epoch in (0, 1):
        counted: Counter[int] = Counter()
        for run in runs:
            for step in run:
                for micro in step.microbatches:
                    for pair, weight in zip(micro.pairs, micro.weights, strict=True):
                        counted[pair] += int(weight) * (step.epoch == epoch)
        assert counted == Counter(range(len(tokens)))
    for steps in zip(*runs, strict=True):
        assert len({len(step.microbatches) for step in steps}) == 1
        assert len({step.members for step in steps}) == 1
        counting = [
            p for s in steps for m in s.microbatches for p, w in zip(m.pairs, m.weights, strict=True) if w
        ]
        assert sorted(counting) == sorted(steps[0].members)
        for step in steps:
            for micro in step.microbatches:
                assert micro.pairs
                assert sum(tokens[p] for p in micro.pairs) <= budget or len(micro.pairs) == 1


def test_a_run_that_goes_on_meets_the_same_steps() -> None:
    plan = Plan(range(10, 60), 8, 100, seed=3)
    steps = list(plan.steps(0, 14))
    assert list(plan.steps(5, 14)) == steps[5:]
    assert [s.number for s in steps] == list(range(14))
    assert steps[0].members != steps[7].members  # another epoch, another order


def test_the_last_step_of_an_epoch_has_what_is_left() -> None:
    plan = Plan([5] * 10, 4, 100, seed=0)
    assert [len(s.members) for s in plan.steps(0, 6)] == [4, 4, 2, 4, 4, 2]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_tokens_are_dealt_evenly(processes: int) -> None:
    tokens = [100, 90, 80, 70, 60, 50, 40, 30] * 4
    plan = Plan(tokens, 32, 1000, 0, processes)
    loads = []
    for process in range(processes):
        (step,) = plan.steps(0, 1, process)
        loads.append(sum(tokens[p] for m in step.microbatches for p in m.pairs))
    assert max(loads) - min(loads) <= 100
