"""What the optimiser's formats cost on real gradients: SmolLM2-135M-Instruct, APO-zero, real pairs, a CPU.

    OMP_NUM_THREADS=1 python benchmarks/optimiser_real.py ../shared/data/pairs_revision.parquet

The embedded model, its weights rounded to bf16 as released ones are, trains on the pairs that are short; a
fourth of them is held out. Gradients are float32's. Weights are held in several ways (`WAYS`):

- open loop: one run in float32, whose gradients all ways take, rounded to their dtype
- closed loop: a run each, with gradients at its own weights (the bf16 half of split ones), and
  float32 once more with the data in another order: how far two runs differ anyway

Prints how far the way that the weights went is from float32's (of its length; over all, of the worst
tensor), what held-out pairs say, how many roots of second moments lie below the smallest code of their
block, and what adding up gradients in bf16 costs. About an hour on two cores that others share.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clair_apo.train import launch
from clair_apo.train.kernels.layers.install import install, makes
from clair_apo.train.kernels.optimiser import naive
from clair_apo.train.load import load_for_run, load_tokenizer
from clair_apo.train.loop import Data, Loop
from clair_apo.train.objectives import Objective, ObjectiveOptions
from clair_apo.train.optim import make_optimizer
from clair_apo.train.options import TrainOptions
from clair_apo.train.packing import packed_tokens
from clair_apo.train.plan import Plan
from clair_apo.train.policy import Policy
from clair_apo.train.reference import Key, References
from clair_apo.train.tokens import TokenPairs, tokenise

# Whether weights are split, in which dtype they are, and that of the moments.
WAYS = {
    "float32": (False, torch.float32, "float32"),
    "split, 8-bit moments": (True, torch.bfloat16, "8bit"),
    "split, float32 moments": (True, torch.bfloat16, "float32"),
    "bare bf16": (False, torch.bfloat16, "float32"),
}
CLOSED = ("split, 8-bit moments", "another order", "bare bf16")
SUMS = (4, 8, 16)  # microbatches
TOKENS = 2048  # of a microbatch


class Held:
    """Weights held in one way from `start` on, by name, and their optimiser."""

    def __init__(self, start: Mapping[str, Tensor], options: TrainOptions, way: str) -> None:
        split, dtype, moments = WAYS[way]
        low: dict[str, Tensor] | None = {} if split else None  # of bf16 numbers nothing is lost
        self.weights = {name: nn.Parameter(value.to(dtype, copy=True)) for name, value in start.items()}
        self.optimizer = make_optimizer(self.weights.items(), replace(options, moments=moments), low)

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.grad = gradients[name].to(weight.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def exact(self, name: str) -> Tensor:
        """What the weight is, in float32: with its low bits where it has some."""
        weight = self.weights[name]
        low = self.optimizer.state[weight].get("low")
        return weight.detach().float() if low is None else naive.join(weight.detach(), low)


class Handing(torch.optim.Optimizer):
    """Hands the gradients of a policy on; what `take` returns are the weights that it runs with next."""

    def __init__(self, policy: Policy, take: Callable[[dict[str, Tensor]], Mapping[str, Tensor] | None]):
        super().__init__(policy.parameters(), {"lr": 0.0})
        self.policy, self.take = policy, take

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        found = self.take(
            {name: p.grad for name, p in self.policy.named_parameters() if p.grad is not None}
        )
        if found is not None:
            put(self.policy, found.__getitem__)


@torch.no_grad()
def put(policy: Policy, weight: Callable[[str], Tensor]) -> None:
    for name, parameter in policy.named_parameters():
        parameter.copy_(weight(name))


class Runs:
    """The parts of `clair-apo train`, for several runs of one policy from the same start."""

    def __init__(self, pairs: Path, options: TrainOptions, steps: int, folder: Path) -> None:
        self.options, self.steps, self.folder = options, steps, folder
        self.processes = launch.start(options)
        found = tokenise(pairs, load_tokenizer(options.model), max_length=options.max_length).pairs
        parts = [[i for i in range(len(found)) if (i % 4 == 3) == out] for out in (False, True)]
        self.train, self.held_out = (
            TokenPairs(found.tokens, found.offsets[part], found.rows[part]) for part in parts
        )
        # The other rows of the embedding have gradients from the head alone.
        every = [np.concatenate(astuple(self.train[i])) for i in range(len(self.train))]
        self.seen = torch.from_numpy(np.unique(np.concatenate(every)).astype(np.int64))
        device = self.processes.device
        loaded = load_for_run(options, torch.float32, options.max_length, device, split=False, train=False)
        self.policy = Policy(loaded.model, share=loaded.shares, budget=TOKENS).train()
        install(self.policy.causal_lm, makes("lean"))
        self.start = {name: p.detach().bfloat16().float() for name, p in self.policy.named_parameters()}

    def loop(self, optimizer: torch.optim.Optimizer, options: TrainOptions) -> Loop:
        """From the start; knows the references of nothing yet."""
        put(self.policy, self.start.__getitem__)
        objective = Objective(ObjectiveOptions.of(options))
        return Loop(options, objective, self.policy, self.policy, optimizer, self.processes)

    def data(self, pairs: TokenPairs, batch: int, seed: int) -> Data:
        plan = Plan([packed_tokens(pairs[i]) for i in range(len(pairs))], batch, TOKENS, seed)
        return Data(pairs, plan, References(Key("rounded", "float32"), pairs.hashes(), self.folder))

    def trained(self, ways: list[str], seed: int, told: Callable[[int, list[Held]], None]) -> list[Held]:
        """All `ways` on the gradients of the first."""
        held = [Held(self.start, self.options, way) for way in ways]

        def take(gradients: dict[str, Tensor]) -> Mapping[str, Tensor]:
            for one in held:
                one.step(gradients)
            return held[0].weights

        loop = self.loop(Handing(self.policy, take), self.options)
        data = self.data(self.train, self.options.batch_size, seed)
        loop.find_references(data, 0, self.steps, lambda *_: None)
        began = time.monotonic()
        for step, _, _ in loop.train(data, 0, self.steps):
            done = step.number + 1
            each = (time.monotonic() - began) / done
            print(f"{ways}: step {done} of {self.steps}, {each:.1f} s each", file=sys.stderr, flush=True)
            told(done, held)
        return held

    def measured(self, weight: Callable[[str], Tensor]) -> dict[str, float]:
        """Of held-out pairs."""
        loop = self.loop(Handing(self.policy, lambda _: None), self.options)
        data = self.data(self.held_out, len(self.held_out), 0)
        loop.find_references(data, 0, 1, lambda *_: None)
        put(self.policy, weight)
        return loop.evaluate(data).result()

    def added_in_bf16(self) -> Iterator[str]:
        """Gradients of single pairs, added up in bf16 and in float32."""
        sums: dict[str, tuple[Tensor, Tensor]] = {
            name: (torch.zeros_like(value, dtype=torch.bfloat16), torch.zeros_like(value))
            for name, value in self.start.items()
        }

        def take(gradients: dict[str, Tensor]) -> None:
            for name, gradient in gradients.items():
                for total in sums[name]:
                    total += gradient.bfloat16()

        # Not clipped, and never stepped: all at the same weights.
        options = replace(self.options, batch_size=1, max_grad_norm=math.inf)
        loop = self.loop(Handing(self.policy, take), options)
        data = self.data(self.train, 1, 0)
        loop.find_references(data, 0, max(SUMS), lambda *_: None)
        for step, _, _ in loop.train(data, 0, max(SUMS)):
            count = step.number + 1
            if count in SUMS:
                pairs = {name: (bf16.float(), exact) for name, (bf16, exact) in sums.items()}
                yield (
                    f"{count} microbatches: {distances(pairs)}; stated bound {math.sqrt(count) * 2**-9:.2%}"
                )


def kind_of(name: str, tensor: Tensor) -> str:
    if tensor.ndim < 2:
        return "norms"
    return next((kind for kind in ("head alone", "embed", "attn") if kind in name), "mlp")


def cut(name: str, tensor: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """A tensor by name; of the embedding, rows of tokens that are `seen` and others apart."""
    if "embed" not in name:
        return {name: tensor}
    others = torch.ones(len(tensor), dtype=torch.bool)
    others[seen] = False
    return {name: tensor[seen], f"{name} (head alone)": tensor[others]}


def distances(tensors: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Of first ones from second ones, of their length: over all, of each kind, and the worst."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    worst = {"matrix": (0.0, ""), "vector": (0.0, "")}
    for name, (a, b) in tensors.items():
        found = [dot(a - b, a - b), dot(a, a), dot(b, b), dot(a, b)]
        for kind in ("all", kind_of(name, a)):
            sums[kind] = [x + y for x, y in zip(sums[kind], found, strict=True)]
        shape = "vector" if a.ndim < 2 else "matrix"
        worst[shape] = max(
            worst[shape], (math.sqrt(found[0] / found[2]), name.removeprefix("causal_lm.model."))
        )
    off = {kind: math.sqrt(d / b) for kind, (d, _, b, _) in sums.items()}
    _, own, theirs, both = sums["all"]
    kinds = ", ".join(f"{kind} {value:.2%}" for kind, value in off.items() if kind != "all")
    worsts = ", ".join(f"worst {shape} {value:.2%} ({name})" for shape, (value, name) in worst.items())
    return (
        f"off by {off['all']:.2%} ({kinds}; {worsts}), cosine {both / math.sqrt(own * theirs):.5f}, "
        f"length {math.sqrt(own / theirs):.4f}"
    )


def dot(a: Tensor, b: Tensor) -> float:
    return float((a.flatten() @ b.flatten()).double())


def way_from(runs: Runs, one: Held, exact: Held) -> str:
    """How the way of `one` differs from that of `exact`."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, start in runs.start.items():
        ways = [cut(name, held.exact(name) - start, runs.seen) for held in (one, exact)]
        found.update({part: (ways[0][part], ways[1][part]) for part in ways[0]})
    return distances(found)


def below_the_codes(runs: Runs, exact: Held) -> Iterator[str]:
    """Of the float32 run's second moments: roots that are rounded up to the smallest code of their block,
    roots that are zero, and how much of the way's square is of weights with such roots."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(5, dtype=torch.float64))
    for name, weight in exact.weights.items():
        if weight.ndim < 2:
            continue  # moments of vectors are not coded
        whole = exact.optimizer.state[weight]["exp_avg_sq"].sqrt()
        ways = cut(name, exact.exact(name) - runs.start[name], runs.seen)
        for part, root in cut(name, whole, runs.seen).items():
            threshold = torch.zeros_like(root, dtype=torch.int32)
            low = naive.decode_root(*naive.encode_root(root, threshold)) > root
            found: list[Any] = [
                low.sum(),
                dot(ways[part][low], ways[part][low]),
                dot(ways[part], ways[part]),
            ]
            found += [(root == 0).sum(), root.numel()]
            sums[kind_of(part, weight)] += torch.tensor([float(x) for x in found], dtype=torch.float64)
    for kind, (below, low, way, zero, count) in sums.items():
        yield (
            f"{kind}: {below / count:.4%} of roots below the smallest code, with {low / way:.4%} of the "
            f"way's square; {zero / count:.4%} are zero"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, help="a pair table")
    parser.add_argument("--steps", type=int, default=40, help="of each run (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="pairs a step (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-6, help="constant (%(default)s)")
    parser.add_argument("--max-length", type=int, default=200, help="of pairs, in tokens (%(default)s)")
    parser.add_argument("--open", nargs="*", choices=list(WAYS)[1:], default=list(WAYS)[1:])
    parser.add_argument("--closed", nargs="*", choices=CLOSED, default=CLOSED)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        options = TrainOptions(
            *("local:smollm2", str(args.pairs), name),
            batch_size=args.batch,
            learning_rate=args.rate,
            lr_scheduler_type="constant",
            max_length=args.max_length,
        )
        compare(Runs(args.pairs, options, args.steps, Path(name)), args.open, args.closed)


def compare(runs: Runs, opened: list[str], closed: list[str]) -> None:
    packages = ", ".join(f"{p} {version(p)}" for p in ("clair-apo", "torch", "transformers"))
    print(f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}; {packages}")
    options = runs.options
    print(
        f"{len(runs.train)} pairs, {len(runs.held_out)} held out; {runs.steps} steps of "
        f"{options.batch_size} pairs at a rate of {options.learning_rate:g}"
    )
    say("\ngradients added up in bf16 against float32")
    for line in runs.added_in_bf16():
        say(line)

    def told(done: int, held: list[Held]) -> None:
        if done % 10 == 0 or done == runs.steps:
            say(f"\nopen loop, step {done}")
            for way, one in zip(opened, held[1:], strict=True):
                say(f"{way}: {way_from(runs, one, held[0])}")
            for line in below_the_codes(runs, held[0]):
                say(line)

    held = runs.trained(["float32", *opened], 0, told)
    exact = held[0]
    say("\nheld out, after the open loop")
    for way, one in zip(["float32", *opened], held, strict=True):
        say(f"{way}: {in_words(runs.measured(one.exact))}")
    del held
    for way in closed:
        other = way == "another order"
        (one,) = runs.trained(["float32" if other else way], int(other), lambda *_: None)
        say(f"\nclosed loop, {way}: {way_from(runs, one, exact)}")
        say(f"held out: {in_words(runs.measured(one.exact))}")


def in_words(found: Mapping[str, float]) -> str:
    names = ("rewards/margins", "logps/chosen_relative", "logps/rejected_relative", "loss")
    return ", ".join(f"{name} {found[name]:+.5f}" for name in names)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
