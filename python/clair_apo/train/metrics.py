"""What is measured of a step, and `metrics.jsonl`.

Numbers stay on the device until they are logged: then there is one sum over the processes and one copy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.terminal import one_line

if TYPE_CHECKING:
    from clair_apo.train.objectives import SequenceLogps

# What is summed on the device, in this order. Counts of answers and tokens stand beside the sums that they divide.
_SUMS = (
    *("loss", "pairs", "chosen", "rejected", "both"),
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "logps/chosen_relative", "logps/rejected_relative"),
    *("kl", "answer_tokens"),
)


class StepMetrics:
    """The sums of one optimiser step or of several, on this process. Without a reference nothing that is
    relative to one is told."""

    def __init__(self, *, with_reference: bool = True) -> None:
        self._with_reference = with_reference
        self._sums: Tensor | None = None
        self.physical = self.logical = 0
        self.steps = 0
        self.waited = 0.0
        self.started = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the device waits for."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def add(
        self,
        *,
        loss: Tensor,
        policy: SequenceLogps,
        reference: SequenceLogps,
        rewards: tuple[Tensor, Tensor],
        tokens: tuple[Tensor, Tensor],
        weights: Tensor,
        physical: int,
        logical: int,
    ) -> None:
        """One microbatch: its part of the step's loss, and its pairs, [pairs] each, which count as `weights`
        say. `tokens`: of the two answers, 0 where a row has none. `physical`: tokens run over; `logical`: what
        passes without sharing would have run over."""
        chosen, rejected = (weights * (count > 0) for count in tokens)
        both = chosen * (tokens[1] > 0)
        relative = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        # KL(policy || reference) a token: exp(-d) - 1 + d of the mean log-ratio of an answer's tokens (k3).
        kl = torch.zeros_like(weights)
        for ratio, count in zip(relative, tokens, strict=True):
            mean = ratio / count.clamp(min=1)
            kl = kl + weights * count * (torch.exp(-mean) - 1 + mean)
        sums = torch.stack(
            [
                loss.double(),
                weights.sum(),
                chosen.sum(),
                rejected.sum(),
                both.sum(),
                (chosen * rewards[0]).sum(),
                (rejected * rewards[1]).sum(),
                (both * (rewards[0] > rewards[1])).sum(),
                (both * (rewards[0] - rewards[1])).sum(),
                (chosen * policy.chosen).sum(),
                (rejected * policy.rejected).sum(),
                (chosen * relative[0]).sum(),
                (rejected * relative[1]).sum(),
                kl.sum(),
                (weights * (tokens[0] + tokens[1])).sum(),
            ]
        )
        self._sums = sums if self._sums is None else self._sums + sums
        self.physical += physical
        self.logical += logical

    def merge(self, step: StepMetrics) -> None:
        """Adds a step that is over."""
        if step._sums is not None:
            self._sums = step._sums if self._sums is None else self._sums + step._sums
        self.physical += step.physical
        self.logical += step.logical
        self.waited += step.waited
        self.steps += 1

    def result(self, over_processes: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, Any]:
        """The means, by the names of metrics.jsonl. Reads from the device."""
        if self._sums is None:
            return {}
        host = self._sums.new_tensor([self.physical, self.logical])
        values = over_processes(torch.cat([self._sums, host])).tolist()
        found = dict(zip(_SUMS, values, strict=False))
        physical, logical = values[-2:]
        seconds = max(time.monotonic() - self.started, 1e-9)
        divided = {
            "rewards/chosen": "chosen",
            "rewards/rejected": "rejected",
            "rewards/margins": "both",
            "rewards/accuracies": "both",
            "logps/chosen": "chosen",
            "logps/rejected": "rejected",
            "logps/chosen_relative": "chosen",
            "logps/rejected_relative": "rejected",
        }
        result: dict[str, Any] = {"loss": found["loss"] / max(1, self.steps)}
        for name, count in divided.items():
            relative = name.startswith("rewards/") or name.endswith("_relative")
            if found[count] and (self._with_reference or not relative):
                result[name] = found[name] / found[count]
        if found["answer_tokens"] and self._with_reference:
            result["kl"] = found["kl"] / found["answer_tokens"]
        result |= {
            "pairs": int(found["pairs"]),
            "tokens": int(physical),
            "tokens_logical": int(logical),
            "sharing": logical / max(1, physical),
            "tokens_per_second": physical / seconds,
            "tokens_logical_per_second": logical / seconds,
            "pairs_per_second": found["pairs"] / seconds,
            "data_wait": self.waited / seconds,
            "peak_memory_gib": peak_memory_gib(self._sums.device),
        }
        return result


def peak_memory_gib(device: torch.device) -> float:
    """The device's peak so far, or that of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class MetricsFile:
    """`metrics.jsonl`: one object a line, in the order of steps. Lines after `after` are dropped when it is
    opened, so no step stands there twice."""

    def __init__(self, path: Path, *, after: int = 0, write: bool = True) -> None:
        self._path, self._after, self._wanted = path, after, write
        self._file: Any = None

    def __enter__(self) -> MetricsFile:
        if self._wanted:
            kept = [r for r in read_metrics(self._path) if r["step"] <= self._after]
            with files.replacing(self._path) as temporary:
                temporary.write_text("".join(_line(record) for record in kept), "utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise ClairError(f"{one_line(str(self._path))}: {error.strerror or error}") from error

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl; nothing where there is none. A line that was cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain) + "\n"
