"""What is measured of a step, and `metrics.jsonl`.

Numbers stay on the device until they are logged: then there is one sum over the processes and one copy to
the host. torch is imported with the first number, so reading the file needs none.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.lazy import Lazy
from clair_apo.terminal import one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")

Record = dict[str, Any]


class Logps(Protocol):
    """Log-probability of each answer, [pairs]; 0 where there is none."""

    @property
    def chosen(self) -> Tensor: ...
    @property
    def rejected(self) -> Tensor: ...


# A mean and what it is divided by: pairs that have a chosen answer, a rejected one, both.
_MEANS = {
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/margins": "both",
    "rewards/accuracies": "both",
    "logps/chosen": "chosen",
    "logps/rejected": "rejected",
    "logps/chosen_relative": "chosen",
    "logps/rejected_relative": "rejected",
    "kl": "answer_tokens",
}
_WITHOUT_REFERENCE = ("logps/chosen", "logps/rejected")
# What is summed on the device, in this order.
_SUMS = ("loss", "pairs", "chosen", "rejected", "both", "answer_tokens", *_MEANS)


class StepMetrics:
    """The sums of one optimiser step, of several, or of an evaluation, on this process.

    `physical`, `logical`: tokens run over, and those that passes without sharing or padding would have run
    over. Time runs from the making of the object to the last `merge` or `result`. Without a reference
    nothing is told that is relative to one.
    """

    def __init__(self, *, with_reference: bool = True) -> None:
        self._with_reference = with_reference
        self.physical = 0
        self.logical = 0
        self._sums: Tensor | None = None
        self._steps = 0
        self._waited = 0.0
        self._seconds = 0.0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around getting data, while the device has nothing to do."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def add(
        self,
        *,
        loss: Tensor,
        policy: Logps,
        reference: Logps,
        rewards: tuple[Tensor, Tensor],
        tokens: tuple[Tensor, Tensor],
        weights: Tensor,
        physical: int,
        logical: int,
    ) -> None:
        """Adds a microbatch without waiting for the device.

        loss: its part of the step's mean loss, a scalar: the parts of all microbatches and processes add up
        to it. policy, reference, rewards: [pairs] of each side. tokens: [pairs] of each side, 0 where a row
        has no such answer. weights: [pairs], 1, or 0 for a pair that only keeps processes in step.
        """
        with torch.no_grad():
            chosen, rejected = (weights * (count > 0) for count in tokens)
            both = chosen * (tokens[1] > 0)
            up, down = policy.chosen - reference.chosen, policy.rejected - reference.rejected
            margins = rewards[0] - rewards[1]
            found = {
                "loss": loss,
                "pairs": weights.sum(),
                "chosen": chosen.sum(),
                "rejected": rejected.sum(),
                "both": both.sum(),
                "answer_tokens": weights @ (tokens[0] + tokens[1]).to(weights.dtype),
                "rewards/chosen": _dot(chosen, rewards[0]),
                "rewards/rejected": _dot(rejected, rewards[1]),
                "rewards/margins": _dot(both, margins),
                "rewards/accuracies": _dot(both, margins > 0),
                "logps/chosen": _dot(chosen, policy.chosen),
                "logps/rejected": _dot(rejected, policy.rejected),
                "logps/chosen_relative": _dot(chosen, up),
                "logps/rejected_relative": _dot(rejected, down),
                "kl": _dot(weights, _divergence(up, tokens[0]) + _divergence(down, tokens[1])),
            }
            sums = torch.stack([found[name].detach().double() for name in _SUMS])
            self._sums = sums if self._sums is None else self._sums + sums
        self._steps = max(self._steps, 1)
        self.physical += physical
        self.logical += logical

    def merge(self, step: StepMetrics) -> None:
        """Adds a step that has just ended; its loss counts as much as that of every other step."""
        now = time.perf_counter()
        if step._sums is not None:
            self._sums = step._sums if self._sums is None else self._sums + step._sums
        self.physical += step.physical
        self.logical += step.logical
        self._steps += step._steps
        self._waited += step._waited
        self._seconds += step._seconds + now - step._since
        self._since = now

    def result(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> Record:
        """The means and rates of what was added, by the names of metrics.jsonl; {} if nothing was.

        The only wait for the device. `over_processes` sums a float64 vector over all processes, which must
        all call this; by default it is torch.distributed's, where that is initialised.
        """
        if self._sums is None:
            return {}
        own = self._sums.new_tensor([self.physical, self.logical, self._waited, 1.0])
        summed = (over_processes or sum_over_processes)(torch.cat([self._sums, own])).tolist()
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        seconds = max(self._seconds, 1e-9)
        physical, logical, waited, processes = summed[len(_SUMS) :]
        sums = dict(zip(_SUMS, summed, strict=False))
        result: Record = {"loss": sums["loss"] / self._steps}
        for name, count in _MEANS.items():
            if sums[count] and (self._with_reference or name in _WITHOUT_REFERENCE):
                result[name] = sums[name] / sums[count]
        return result | {
            "pairs": round(sums["pairs"]),
            "tokens": round(physical),
            "tokens_logical": round(logical),
            "sharing": logical / max(physical, 1),
            "tokens_per_second": physical / seconds,
            "tokens_logical_per_second": logical / seconds,
            "pairs_per_second": sums["pairs"] / seconds,
            "data_wait": waited / processes / seconds,
            "peak_memory_gib": peak_memory_gib(self._sums.device),
        }


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    # What has no weight must not count, even if it is NaN.
    return torch.where(weights > 0, weights * values, torch.zeros_like(weights)).sum()


def _divergence(log_ratio: Tensor, tokens: Tensor) -> Tensor:
    """[pairs]: an estimate of KL(policy || reference) of each answer, times its tokens.

    exp(-d) - 1 + d, where d is the mean log-ratio of its tokens (Schulman's k3): 0 at the start, never
    negative, and at most what the same estimate token by token would be.
    """
    mean = log_ratio / tokens.clamp(min=1)
    return tokens * (torch.expm1(-mean) + mean)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over the processes of torch.distributed; `values` where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def peak_memory_gib(device: torch.device) -> float:
    """The peak so far: of PyTorch's memory on the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    unit = 2**30 if os.uname().sysname == "Darwin" else 2**20  # there in bytes, elsewhere in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# Dense bf16 FLOP/s of one GPU, as its data sheet says, by a part of its name; the first that fits.
_PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def mfu(tokens_per_second: float, parameters: int, gpu: str, processes: int = 1) -> float | None:
    """Model FLOPs utilisation: 6 x parameters x physical tokens/s over the peak of all GPUs in bf16.

    Layers that are run twice to save memory count once, and attention's own products are left out, so it
    is rather too low than too high. `gpu`: its name as CUDA gives it; None for one whose peak is not known.
    """
    peak = next((peak for name, peak in _PEAKS.items() if name in gpu), None)
    return None if peak is None else 6 * parameters * tokens_per_second / (peak * processes)


class MetricsFile:
    """`metrics.jsonl`, a context manager: one object a line, on disk as soon as it is written.

    When it is opened, lines of steps after `after` are dropped, so that none stands there twice once a run
    goes on from step `after`; so are lines that a kill cut off. With `write=False` (for all processes but
    the first) nothing is touched.
    """

    def __init__(self, path: Path, *, after: int = 0, write: bool = True) -> None:
        self._path, self._after, self._wanted = path, after, write
        self._file: Any = None

    def __enter__(self) -> MetricsFile:
        if self._wanted:
            try:
                self._mend()
                self._file = self._path.open("ab", buffering=0)
            except OSError as error:
                raise self._trouble(error) from error
        return self

    def _mend(self) -> None:
        if not self._path.is_file():
            return
        found = self._path.read_bytes()
        lines = [line + b"\n" for line in found.split(b"\n")]
        kept = b"".join(
            line
            for line in lines
            if (record := _record(line)) is not None and record["step"] <= self._after
        )
        if kept != found:
            with files.replacing(self._path) as temporary:
                temporary.write_bytes(kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a step or an evaluation. Numbers that JSON does not have (NaN, infinity) become null.

        Raises ClairError where the disk does not take it.
        """
        if self._file is None:
            return
        line = json.dumps({name: _plain(value) for name, value in record.items()}, allow_nan=False) + "\n"
        rest = memoryview(line.encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> ClairError:
        return ClairError(f"{one_line(str(self._path))}: cannot be written: {error.strerror or error}")

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """The steps and evaluations that a metrics.jsonl holds, in order; null is None.

    A line that is none, such as a last one that was cut off, is left out. Raises ClairError where the file
    cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ClairError(
            f"{one_line(os.fspath(path))}: cannot be read: {error.strerror or error}"
        ) from error
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own, and None for one that JSON does not have."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
