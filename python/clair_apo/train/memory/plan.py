"""Memory as a plan: what a run will take, before anything of it is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from clair_apo.errors import ClairError
from clair_apo.terminal import one_line
from clair_apo.train.memory.account import (
    GIB,
    Choice,
    Gathered,
    Parameters,
    Passes,
    Spread,
    Standing,
    choose,
    standing,
)
from clair_apo.train.memory.model import count, empty_policy, install_layers, kernels_of, one_of_each
from clair_apo.train.memory.trace import Made, Pass, imagined, run_pass, without_contents
from clair_apo.train.optim import make_optimizer

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions
    from clair_apo.train.policy import Policy

# A GPU of the 80 GB class shows 79.1 GiB; what CUDA itself holds and what lies in pieces takes the rest.
CLASS_80GB = 74.0
# Of what is free on a GPU: the allocator leaves gaps between tensors of different sizes.
USABLE = 0.95
# Tokens of a pair that is certainly no longer than a chunk of the head.
SHORT_PAIR = 512
# Tokens of a microbatch beyond which a GPU is busy anyway, and on a CPU.
MOST_TOKENS = {"cuda": 4096, "cpu": 1024}


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a run may take on a device of this kind, in bytes, and who says so."""

    device: torch.device
    size: int
    source: str


def find_room(named: float | None) -> Room:
    """`named` GiB on a GPU; else what is free on this process's GPU; without one, that of the 80 GB
    class."""
    cuda = torch.device("cuda")
    if named is not None:
        return Room(cuda, int(named * GIB), "--plan-memory")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        said = f"{name}: {USABLE:.0%} of the {free / GIB:.1f} GiB that are free of {total / GIB:.1f}"
        return Room(device, int(USABLE * free), said)
    return Room(cuda, int(CLASS_80GB * GIB), "no GPU here: one of the 80 GB class")


@dataclass(frozen=True, slots=True)
class Precision:
    """How numbers are held: the weights' dtype, that of products where it is another, and whether the
    optimiser keeps 16 low bits of each weight that is trained."""

    dtype: torch.dtype
    autocast: torch.dtype | None
    split: bool

    @staticmethod
    def of(options: TrainOptions, device: torch.device) -> Precision:
        """As a run with these options on this device has it."""
        cuda = device.type == "cuda"
        bf16 = options.in_bfloat16(cuda=cuda)
        return Precision(
            torch.bfloat16 if bf16 else torch.float32,
            torch.bfloat16 if bf16 and cuda and options.lora_rank else None,
            bf16 and not options.allow_bf16_updates and not options.lora_rank,
        )

    def text(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} with 16 low bits" if self.split else name


def optimiser_state(policy: Policy, options: TrainOptions, held: Precision) -> tuple[int, int]:
    """Bytes of low bits, and of moments, of the optimiser that a run makes. To be called within
    `without_contents`."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not held.split:  # torch's own, which makes its state in the first step: as the parameters are
        moments = 2 if options.optimizer == "adamw" else 1
        return 0, moments * sum(p.numel() * p.element_size() for p in trained)
    state = make_optimizer(policy.named_parameters(), options, {}).state
    found = [(name, t.numel() * t.element_size()) for own in state.values() for name, t in own.items()]
    low = sum(size for name, size in found if name == "low")
    return low, sum(size for _, size in found) - low


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a layer keeps for the backward pass, as bytes a token."""

    part: str
    dtype: str
    tensors: int
    size: float


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The bytes of a run in each process. `choice` is None where not even one pair fits; `least` is then
    what one pair takes with every layer run twice."""

    model: str
    held: str
    kernels: str
    parameters: Parameters
    spread: Spread
    standing: Standing
    layers: int
    hidden: int
    longest: int
    room: Room
    choice: Choice | None
    least: int
    parts: tuple[Part, ...]

    @property
    def peak(self) -> int:
        return self.standing.total + self.choice.moment.peak if self.choice else self.least

    def check(self) -> None:
        """Raises: ClairError that says what would fit, where this does not."""
        if self.choice is None:
            raise ClairError(self.why())

    def why(self) -> str:
        """Why not even one pair fits, and what would help."""
        return (
            f"{one_line(self.model)} does not fit: one pair of {self.longest:,} tokens, every layer run "
            f"twice takes {self.least / GIB:.1f} GiB, and there are {self.room.size / GIB:.1f} "
            f"({self.room.source}). {self._advice()}"
        )

    def line(self) -> str:
        """What was picked, in a line."""
        choice = self.choice
        assert choice is not None
        twice = self.layers - choice.kept_layers
        return (
            f"memory: {self.peak / GIB:.1f} GiB of {self.room.size / GIB:.1f} planned; up to "
            f"{choice.tokens:,} tokens a microbatch, in which {twice} of {self.layers} layers run twice "
            "(--plan tells more)"
        )

    def _advice(self) -> str:
        state = self.standing.total / GIB
        said = []
        if self.parameters.trained == self.parameters.total:
            said.append("--lora-rank 16 trains adapters only")
        if not self.spread.sharded:
            said.append("--sharding fsdp over more GPUs spreads the weights")
        else:
            said.append("more GPUs leave less to each")
        if self.standing.total < self.room.size:
            said.append("a shorter --max-length makes the longest pair shorter")
        return f"Weights, gradients and moments take {state:.1f} of it. What would help: {'; '.join(said)}."

    def document(self) -> dict[str, Any]:
        """For --json. Sizes are in bytes, of one process."""
        choice = self.choice
        return {
            "model": self.model,
            "held": self.held,
            "kernels": self.kernels,
            "parameters": self.parameters.total,
            "trained": self.parameters.trained,
            "processes": self.spread.processes,
            "sharded": self.spread.sharded,
            "layers": self.layers,
            "longest_pair": self.longest,
            "room": self.room.size,
            "room_source": self.room.source,
            "fits": choice is not None,
            "peak": self.peak,
            "standing": {**asdict(self.standing), "total": self.standing.total},
            "tokens_per_microbatch": choice and choice.tokens,
            "activation_budget": choice and choice.budget,
            "layers_kept": choice and choice.kept_layers,
            "moment": choice and {**asdict(choice.moment), "peak": choice.moment.peak},
            "kept_per_token": [asdict(part) for part in self.parts],
        }


def plan_memory(
    options: TrainOptions,
    config: Any,
    longest: int,
    room: Room,
    spread: Spread,
    sequence: int | None = None,
) -> MemoryPlan:
    """What a run of `options` takes of `room` on each of its processes.

    `config`: the model's; `longest`: tokens that the longest pair takes; `sequence`: those of the longest
    prompt with one answer, on which sharing hangs (default: `longest`). Raises: ClairError for a model
    whose layers cannot be run over shapes alone.
    """
    held = Precision.of(options, room.device)
    kind, kernels = room.device.type, kernels_of(options, room.device)
    live = options.reference == "live" and not options.lora_rank
    try:
        with without_contents():
            policy = empty_policy(
                config,
                options,
                held.dtype,
                held.autocast,
                sequence or longest,
                room.device,
                kernels=kernels,
            )
            parameters = count(policy)
            low_bits, moments = optimiser_state(policy, options, held)
            kinds = one_of_each(policy)
            install_layers(policy, kernels)
            # What bends upwards lies below a line from the fewest to the most tokens, but above it beyond.
            most = max(2 * longest, options.tokens_per_microbatch or MOST_TOKENS[kind])
            size = max(longest, most // 4)
            batches = [
                imagined(longest, 1, share=policy.share),
                imagined(size, math.ceil(most / size), share=policy.share),
            ]

            @cache
            def head(tokens: int) -> int:
                sizes = {min(longest, tokens), min(longest, tokens, SHORT_PAIR)}
                some = [imagined(size, tokens // size, share=policy.share) for size in sizes]
                return max(run_pass(policy, batch, twice=False).head for batch in some)

            def over_batches(*, twice: bool) -> list[Pass]:
                return [run_pass(policy, batch, twice=twice, sharded=spread.sharded) for batch in batches]

            keeping, twice = over_batches(twice=False), over_batches(twice=True)
            passes = Passes(keeping, twice, kinds, head, Gathered.of(parameters, spread))
            state = standing(parameters, low_bits, moments, spread, live=live, cuda=kind == "cuda")
            choice = choose(
                passes,
                room.size - state.total,
                longest,
                options.tokens_per_microbatch,
                options.activation_budget,
                MOST_TOKENS[kind],
            )
            least = state.total + passes.at(longest, 0).peak
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise ClairError(
            f"the memory of {one_line(options.model)} cannot be planned: what its layers keep hangs on the "
            f"contents of tensors, not on their shapes alone ({one_line(str(error), 100)})"
        ) from error
    except ClairError:
        raise
    except Exception as error:  # a run must not end because its plan cannot be made
        raise ClairError(
            f"the memory of {one_line(options.model)} cannot be planned: "
            f"{one_line(str(error) or type(error).__name__, 200)}"
        ) from error
    return MemoryPlan(
        model=options.model,
        held=held.text(),
        kernels=kernels,
        parameters=parameters,
        spread=spread,
        standing=state,
        layers=len(kinds),
        hidden=config.get_text_config().hidden_size,
        longest=longest,
        room=room,
        choice=choice,
        least=least,
        parts=_parts(passes.longest.kept, kinds[-1], batches[0].tokens),
    )


def _parts(kept: Sequence[Made], layer: int, tokens: int) -> tuple[Part, ...]:
    """What the parts of one layer keep, by dtype, a token."""
    found: dict[tuple[str, str], list[int]] = {}
    for made in kept:
        if made.layer == layer:
            key = (made.part or "between", str(made.dtype).removeprefix("torch."))
            found.setdefault(key, []).append(made.size)
    return tuple(
        Part(part, dtype, len(sizes), sum(sizes) / tokens) for (part, dtype), sizes in found.items()
    )
