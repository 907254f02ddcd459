"""The bytes of a run, added up from a few passes over nothing (`trace.py`) and from the numbers of its
parameters.

In the step of a run there live at once

    weights, low bits, gradients, moments      from the first to the last step
    activations                                of the layers that keep theirs, and the inputs of those
    that run twice the greatest of                            the head's chunk and gradients,
                                               what the backward pass needs for a moment,
                                               one layer that runs once more and its backward pass

and with several processes what FSDP gathers or DDP collects. All of it but the constant parts is in
proportion to tokens, so two lengths of a pass say it for any.

FSDP gathers what stands around the layers (embedding, head) as one group, which stays whole to the end of a
pass, and each layer as one, which goes when it is done. Beside the group around the layers there are

    before the first layer     the buffer that it came in, and that of the first layer
    at the head                the buffer that the last layer came in
    in a backward pass         weights and gradients of the layer at work, the buffer of the one to come,
                               and in float32 the gradients of the one before, on their way
    at the end                 no weights: gradients around the layers, and these in float32
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clair_apo.train.memory.trace import Pass

GIB = 1 << 30
# cuBLAS and cuBLASLt keep 32 MiB each on Hopper (torch's CUBLAS_WORKSPACE_CONFIG, CUBLASLT_WORKSPACE_SIZE).
CUBLAS_WORKSPACE = 64 << 20


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers a model has, and how they are held.

    `total`, `trained`: all, and those with a gradient. `layer`, `outside`: of the largest layer, and of
    what stands around the layers. `weights`, `gradients`: bytes of all of each. `layer_weights`,
    `outside_weights`: likewise.
    """

    total: int
    trained: int
    weights: int
    gradients: int
    layer_weights: int
    outside_weights: int
    layer_gradients: int
    outside_gradients: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Over how many processes, and whether weights are spread (FSDP2) or repeated (DDP)."""

    processes: int = 1
    sharded: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Bytes that one process holds all the time."""

    weights: int
    low_bits: int
    gradients: int
    moments: int
    reference: int = 0
    gathered: int = 0
    buckets: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.low_bits
            + self.gradients
            + self.moments
            + self.reference
            + self.gathered
            + self.buckets
            + self.workspace
        )


def standing(
    parameters: Parameters, low_bits: int, moments: int, spread: Spread, *, live: bool, cuda: bool
) -> Standing:
    """`low_bits`, `moments`: bytes over the whole model; `live`: the reference is a model of its own."""
    share = spread.processes if spread.sharded else 1

    def part(size: int) -> int:
        return math.ceil(size / share)

    gathered = 0
    if spread.sharded:
        # Of a live reference it stays too: no backward pass ends it.
        gathered = parameters.outside_weights * (2 if live else 1)
    repeated = spread.processes > 1 and not spread.sharded
    return Standing(
        weights=part(parameters.weights),
        low_bits=part(low_bits),
        gradients=part(parameters.gradients),
        moments=part(moments),
        reference=part(parameters.weights) if live else 0,
        gathered=gathered,
        # DDP's buckets stay while gradients of the microbatches before the last one lie beside them.
        buckets=parameters.gradients if repeated else 0,
        workspace=CUBLAS_WORKSPACE if cuda else 0,
    )


@dataclass(frozen=True, slots=True)
class Gathered:
    """Bytes that FSDP holds for a while beside the weights around the layers: as the module says, of the
    four moments. `reduced`: of those in a backward pass the gradients in float32, which are there from the
    second layer on. Gradients of the layer at work are counted where they are made (`Pass.backward`)."""

    begin: int = 0
    head: int = 0
    layer: int = 0
    reduced: int = 0
    end: int = 0

    @staticmethod
    def of(parameters: Parameters, spread: Spread) -> Gathered:
        """Nothing without FSDP."""
        if not spread.sharded:
            return Gathered()
        numbers = parameters.trained / parameters.gradients if parameters.gradients else 0.0
        at_the_end = parameters.outside_gradients + round(4 * numbers * parameters.outside_gradients)
        return Gathered(
            begin=parameters.outside_weights + parameters.layer_weights,
            head=parameters.layer_weights,
            layer=2 * parameters.layer_weights,
            reduced=round(4 * numbers * parameters.layer_gradients),
            end=max(0, at_the_end - parameters.outside_weights),  # which are gone by then
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes of a pass over so many tokens in which so many of the last layers keep their activations.

    `backward`, `before`: above all activations, what the backward pass of the last layer needs, and that of
    those before it; `again`: above inputs, what a layer needs to run once more and to go back; `end`: all
    that there is at the gradient of the embedding, when activations are gone."""

    kept: int
    inputs: int
    outside: int
    head: int
    backward: int
    before: int
    again: int
    end: int
    gathered: Gathered = Gathered()

    @property
    def activations(self) -> int:
        return self.kept + self.inputs + self.outside

    @property
    def peak(self) -> int:
        """What the pass needs beside weights, gradients and moments."""
        extra = self.gathered
        backward = max(self.backward, self.before + extra.reduced) + extra.layer
        behind = self.activations + max(self.head + extra.head, backward)
        again = self.inputs + self.outside + self.again + extra.layer + extra.reduced
        end = max(self.end + extra.reduced, extra.end)
        return max(behind, again if self.again else 0, self.outside + extra.begin, end)

    @property
    def transient(self) -> int:
        return self.peak - self.activations


class Passes:
    """What passes over the longest pair and over the most tokens took, for any number of tokens.

    `kinds` [layers]: the layer of the passes that stands for each of the model's. `head`: what the head
    needs for so many tokens, which is not in proportion to them: it takes as many pairs as its chunk holds.
    `gathered`: what FSDP adds.
    """

    def __init__(
        self,
        keeping: Sequence[Pass],
        twice: Sequence[Pass],
        kinds: Sequence[int],
        head: Callable[[int], int],
        gathered: Gathered = Gathered(),
    ) -> None:
        self._keeping, self._twice, self._kinds, self._head = keeping, twice, kinds, head
        self._gathered = gathered
        self.count = len(kinds)

    @property
    def longest(self) -> Pass:
        """The one over one pair."""
        return self._keeping[0]

    def at(self, tokens: int, kept_layers: int) -> Moment:
        """`kept_layers`: how many of the last layers keep their activations."""
        first = self.count - kept_layers
        some = [_of(one, self._kinds, first) for one in self._keeping]
        again = [one.left + max(one.backward, one.before) for one in self._twice]
        if not first:
            again = [0 for _ in again]
        return Moment(
            kept=self._line([one.kept for one in some], tokens),
            inputs=self._line([one.inputs for one in some], tokens),
            outside=self._line([one.outside for one in some], tokens),
            head=self._head(tokens),
            backward=self._line([one.backward for one in some], tokens),
            before=self._line([one.before for one in some], tokens),
            again=self._line(again, tokens),
            end=self._line([one.end for one in some], tokens),
            gathered=self._gathered,
        )

    def _line(self, values: Sequence[int], tokens: int) -> int:
        """Through the two values that were found."""
        (near, far), (a, b) = (self._keeping[0].tokens, self._keeping[1].tokens), values
        return round(a + (b - a) * (tokens - near) / (far - near))


def _of(one: Pass, kinds: Sequence[int], first: int) -> Moment:
    layers = one.layers
    return Moment(
        kept=sum(layers[kind] for kind in kinds[first:]),
        inputs=sum(one.inputs[kind] for kind in kinds[:first]),
        outside=one.outside,
        head=0,
        backward=one.left + one.backward,
        before=one.left + one.before,
        again=0,
        end=one.end,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """Tokens of a microbatch and how many layers keep their activations; `budget` as --activation-budget
    says it."""

    tokens: int
    kept_layers: int
    budget: int
    moment: Moment


def choose(
    passes: Passes,
    room: int,
    longest: int,
    tokens: int | None = None,
    budget: int | None = None,
    most: int = 4096,
) -> Choice | None:
    """The largest microbatch that fits into `room` bytes, of up to `most` tokens or the longest pair,
    whichever is more; then as few layers that run twice as fit. `tokens` and `budget` where they are
    given; a pair of more than these tokens is a microbatch by itself, and has to fit. None if not even one
    pair fits."""
    sizes = [max(tokens, longest)] if tokens else _sizes(max(most, longest), longest)
    for size in sizes:
        for kept in range(passes.count, -1, -1):
            if budget is not None and kept != _kept(passes.count, size, budget):
                continue
            moment = passes.at(size, kept)
            if moment.peak <= room:
                return Choice(tokens or size, kept, budget or _budget(passes.count, size, kept), moment)
    return None


def _sizes(most: int, longest: int) -> list[int]:
    """Halves of `most` down to the longest pair."""
    sizes = []
    while most > longest:
        sizes.append(most)
        most //= 2
    return [*sizes, longest]


def _kept(layers: int, tokens: int, budget: int) -> int:
    """As `Policy` deals a budget out."""
    return layers if tokens <= budget else layers * budget // tokens


def _budget(layers: int, tokens: int, kept: int) -> int:
    """The least number of tokens for which so many layers keep theirs."""
    return max(1, math.ceil(tokens * kept / layers)) if layers else tokens
