"""Runs in two processes, many in one launch, since starting them takes longest:

    torchrun --nproc_per_node 2 tests/train/two_processes.py RUNS.json

RUNS.json is a list of `Run`s. Each process writes what it saw of them to RUNS.0.json or RUNS.1.json.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from clair_apo import cli, train_model
from clair_apo.errors import ClairError
from clair_apo.train import loop, shards

RANK = int(os.environ.get("RANK", "0"))


@dataclass
class Run:
    """`flags` as `train_model` takes them; `command`: given to the command. Before microbatch `interrupt`
    (from 0, over the whole run) rank 1 gets SIGTERM; before step `fail` it fails, which ends the launch."""

    flags: dict[str, Any]
    command: bool = False
    weigh: bool = False
    interrupt: int | None = None
    fail: int | None = None


@dataclass
class Seen:
    """`said`: how a run ended, if not well; `most`: bytes of the tensors that it had when something was
    sharded, at most, if they are weighed; `since`: microbatches since the last whole step."""

    said: str | None = None
    most: int = 0
    since: int = 0


def tensor_bytes() -> int:
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # what isinstance says of some objects warns
    live = [x for x in gc.get_objects() if type(x) in kinds]
    sizes = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in live if not x.is_meta)}
    return sum(sizes.values())


def after(what: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*given: Any, **named: Any) -> Any:
        what()
        return function(*given, **named)

    return both


def watched(run: Run) -> Seen:
    seen, before, microbatches, steps = Seen(), tensor_bytes(), 0, 0

    def sharding() -> None:
        seen.most = max(seen.most, tensor_bytes() - before) if run.weigh else 0

    def microbatch() -> None:
        nonlocal microbatches
        if RANK == 1 and microbatches == run.interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
        microbatches += 1
        seen.since += 1

    def step() -> None:
        nonlocal steps
        if RANK == 1 and steps == run.fail:
            raise ClairError("no room here")
        steps += 1
        seen.since = 0

    with (
        mock.patch.object(shards, "fully_shard", after(sharding, shards.fully_shard)),
        mock.patch.object(loop.Loop, "_run", after(microbatch, loop.Loop._run)),
        mock.patch.object(loop, "clip_and_step", after(step, loop.clip_and_step)),
    ):
        if run.command:
            words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in run.flags.items()]
            status = cli.main(["train", *(word for pair in words for word in pair)])
            seen.said = f"status {status}"
            if run.fail is not None:
                raise SystemExit(status)
        else:
            try:
                train_model(**run.flags)
            except ClairError as error:
                seen.said = str(error)
    return seen


if __name__ == "__main__":
    file = Path(sys.argv[1])
    found: list[dict[str, Any]] = []
    for number, each in enumerate(json.loads(file.read_text())):
        os.environ["XDG_CACHE_HOME"] = str(file.with_suffix(f".cache-{number}"))
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(
            number
        )  # what processes tell each other is of one run
        found.append(asdict(watched(Run(**each))))
        file.with_suffix(f".{RANK}.json").write_text(json.dumps(found))
