"""What a run takes of memory by PyTorch's own trackers: the truth that plans are held against.

Tensors are without contents. Several processes are one, whose process group is fake: the model is sharded
and wrapped as in a run, and what would be received has its shape.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from tiny_models import Pair, random_pair
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, Qwen2Config

from clair_apo.train import launch, shards
from clair_apo.train.kernels.layers import install
from clair_apo.train.memory.account import GIB, Spread
from clair_apo.train.memory.model import empty_policy, install_layers, kernels_of
from clair_apo.train.memory.plan import MemoryPlan, Precision, Room, plan_memory
from clair_apo.train.memory.trace import empty_batch, without_contents
from clair_apo.train.options import TrainOptions
from clair_apo.train.packing import Packed
from clair_apo.train.policy import Policy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
QWEN_1_5B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
)
# Prompt, shared beginning, and the rests of chosen and rejected answers: a microbatch of 4,095 tokens.
REVISIONS = [(150, 60, 300, 280), (400, 30, 420, 350), (90, 10, 500, 466), (250, 100, 350, 339)]


def options(**changes: Any) -> TrainOptions:
    return TrainOptions("8B", "", "", **changes)


def revisions(shorter: int = 0) -> list[Pair]:
    """`shorter`: tokens that the last answer lacks."""
    rng = np.random.default_rng(0)
    *others, (prompt, shared, chosen, rejected) = REVISIONS
    return [random_pair(rng, *shape) for shape in (*others, (prompt, shared, chosen, rejected - shorter))]


def deep(layers: int, config: Any = LLAMA_8B, **changes: Any) -> Any:
    """`config` with so many layers."""
    made = copy.deepcopy(config)
    made.num_hidden_layers = layers
    if hasattr(made, "layer_types"):
        made.layer_types = made.layer_types[:layers]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def plan(
    config: Any, room: float = 74.0, longest: int = 4095, spread: Spread | None = None, **flags: Any
) -> MemoryPlan:
    return plan_memory(
        options(**flags), config, longest, Room(CUDA, int(room * GIB), "a test"), spread or Spread()
    )


def of_plan(found: MemoryPlan) -> float:
    """What the trackers see of it, in GiB: neither optimiser nor cuBLAS."""
    assert found.choice is not None
    held = found.standing
    seen = held.weights + held.gradients + held.reference + held.gathered + held.buckets
    return (seen + found.choice.moment.peak) / GIB


# --- one process ---------------------------------------------------------------------------------


class Tracker(MemTracker):
    """PyTorch's, for models of which some weights are not trained: it would hook each gradient."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> Any:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def truth(batch: Packed, given: TrainOptions, budget: int, config: Any = LLAMA_8B) -> dict[str, float]:
    """What PyTorch's tracker sees of the second microbatch of a step, in GiB, by its own categories."""
    with without_contents():
        policy = _policy(config, given, budget)
        install_layers(policy, kernels_of(given, CUDA))
        reference = _reference(config, given, budget)
        if reference is not None:
            install_layers(reference, kernels_of(given, CUDA))
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        batch = empty_batch(batch)
        tracker = Tracker()
        tracker.track_external(policy, reference)
        with tracker:
            _step(policy, batch, reference)
        return _seen(tracker)


def _policy(config: Any, given: TrainOptions, budget: int) -> Policy:
    held = Precision.of(given, CUDA)
    policy = empty_policy(
        config, given, held.dtype, held.autocast, 4096, CUDA, kernels=kernels_of(given, CUDA)
    )
    policy.budget = budget
    return policy


def _reference(config: Any, given: TrainOptions, budget: int) -> Policy | None:
    if given.reference != "live" or given.lora_rank:
        return None
    policy: Policy = _policy(config, given, budget).eval().requires_grad_(False)
    return policy


def _step(policy: nn.Module, batch: Packed, reference: Policy | None = None) -> None:
    """One microbatch, as in `Loop`."""
    if reference is not None:
        with torch.no_grad():
            reference(batch, lambda chosen, rejected, _: chosen)
    loss, _, _ = policy(batch, lambda chosen, rejected, _: torch.sigmoid(rejected - chosen))
    loss.backward()


def _seen(tracker: MemTracker, when: str = "peak") -> dict[str, float]:
    found = tracker.get_tracker_snapshot(when)[CPU]
    return {str(name).rpartition(".")[2]: size / GIB for name, size in found.items()}


# --- several processes ---------------------------------------------------------------------------


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Any]:
    """The first of `count` processes, of which the others are made up."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        with without_contents():
            yield SimpleNamespace(first=True, device=CPU, count=count)
    finally:
        dist.destroy_process_group()


def sharded_truth(
    batch: Packed, given: TrainOptions, budget: int, config: Any, count: int
) -> dict[str, float]:
    """As `truth`, of one of `count` processes by FSDP."""
    kernels = kernels_of(given, CUDA)
    layers = None if kernels == "plain" else install.makes(kernels)
    with _processes(count) as processes, mock.patch.object(shards, "init_device_mesh", _mesh):
        policy = _policy(config, given, budget)
        shards.spread(policy, {}, processes, layers)
        reference = _reference(config, given, budget)
        if reference is not None:
            shards.spread(reference, {}, processes, layers)
        batch = empty_batch(batch)
        _step(policy, batch)  # whose gradients are there in the second
        tracker = FSDPMemTracker(policy)
        if reference is not None:
            tracker.track_inputs(tuple(p.to_local() for p in reference.parameters()))
        with tracker:
            _step(policy, batch, reference)
        return _seen(tracker)


def _mesh(*given: Any) -> Any:
    with unset_fake_temporarily():  # a mesh looks at the numbers of its processes
        return dist.init_device_mesh(*given)


def replicated_truth(
    batch: Packed, given: TrainOptions, budget: int, config: Any, count: int
) -> dict[str, float]:
    """As `truth`, of one of `count` processes by DDP, in the last of a step's two microbatches; `buckets`
    too."""
    checks = "_verify_param_shape_across_processes"  # by contents
    with _processes(count) as processes, mock.patch.object(nn.parallel.distributed, checks):
        policy = _policy(config, given, budget)
        install_layers(policy, kernels_of(given, CUDA))
        batch = empty_batch(batch)
        tracker = Tracker()
        tracker.track_external(policy)
        with tracker:
            before = _seen(tracker, "current")["Total"]
            module: Any = launch.wrap(policy, given, processes)
            buckets = _seen(tracker, "current")["Total"] - before
            module.register_comm_hook(None, _received)
            for last in (False, True):
                tracker.reset_mod_stats()
                with launch.accumulating(module, last):
                    _step(module, batch)
        return {**_seen(tracker), "buckets": buckets}


def _received(_: None, bucket):  # type: ignore[no-untyped-def]  # DDP compares types, not their names
    """In place of the sum over all processes, which the fake group does not give."""
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
