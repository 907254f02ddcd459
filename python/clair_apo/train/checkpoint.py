"""Checkpoints that are whole or not there, and the trained model as others load it.

A checkpoint is a folder `checkpoints/step-00000123` with the state of the weights and of the optimiser
(`torch.distributed.checkpoint`, so that it can be read by another number of processes), random states
of each process, and `state.json`, which is written last. It is written under another name and renamed,
so a kill while saving leaves the one before."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from clair_apo.errors import ClairError, UsageError
from clair_apo.terminal import one_line

_NAME = re.compile(r"step-(\d+)")
_ENDING = ".tmp"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: optimiser steps done, logical tokens run over so far, seconds spent."""

    step: int
    num_tokens: int
    seconds: float


class Checkpoints:
    """The checkpoints of one run in `folder`, of which the newest `limit` stay."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def save(
        self,
        progress: Progress,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
    ) -> Path:
        """Called by all processes at once. Raises ClairError where it cannot be written; those before
        stay."""
        final = self.folder / f"step-{progress.step:08d}"
        temporary = self.folder / f".{final.name}{_ENDING}"
        try:
            if _rank() == 0:
                self._sweep()
                temporary.mkdir(parents=True)
            _barrier()
            weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
            dcp.save(  # type: ignore[attr-defined]
                {"model": weights, "optimizer": moments}, checkpoint_id=temporary
            )
            torch.save(_random_state(), temporary / f"random-{_rank()}.pt")
            _barrier()
            if _rank() == 0:
                state = {
                    "step": progress.step,
                    "num_tokens": progress.num_tokens,
                    "seconds": progress.seconds,
                    "processes": _world(),
                    "settings": dict(settings),
                }
                _write(temporary / "state.json", json.dumps(state, indent=1))
                if final.exists():
                    shutil.rmtree(final)
                temporary.rename(final)
                _sync(self.folder)
                # Those of later steps are of a run that went on from here before, and its metrics are gone.
                later = [path for path in self.whole() if path.name > final.name]
                kept = [path for path in self.whole() if path.name <= final.name]
                for old in later + kept[: -self.limit]:
                    shutil.rmtree(old, ignore_errors=True)
        except (OSError, CheckpointException) as error:
            raise ClairError(
                f"{one_line(str(self.folder))}: the checkpoint of step {progress.step} could not "
                "be written: "
                f"{_reason(error)}. One before it stands, if there is any; --resume goes on from it."
            ) from error
        _barrier()
        return final

    def whole(self) -> list[Path]:
        """The whole ones, oldest first."""
        found = [
            path
            for path in self.folder.glob("step-*")
            if _NAME.fullmatch(path.name) and (path / "state.json").is_file()
        ]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def find(self, wanted: str) -> Path | None:
        """The newest whole one for "newest" (None if there is none), or the folder that is named.

        Raises: UsageError if what is named is no whole checkpoint.
        """
        if wanted == "newest":
            return next(reversed(self.whole()), None)
        path = Path(wanted)
        if not (path / "state.json").is_file():
            raise UsageError(f"{one_line(wanted)} is no whole checkpoint: it has no state.json")
        return path

    def _sweep(self) -> None:
        """Removes what a killed process left half written."""
        for left in self.folder.glob(f".step-*{_ENDING}"):
            shutil.rmtree(left, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint says."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ClairError(f"{one_line(str(path))}: state.json cannot be read: {error}") from error
    if not isinstance(state, dict) or not {"step", "num_tokens", "seconds", "settings"} <= state.keys():
        raise ClairError(f"{one_line(str(path))}: state.json is damaged: it lacks what a checkpoint states")
    return state


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts weights, moments and random states back. Called by all processes at once."""
    state = read_state(path)
    weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    try:
        dcp.load(  # type: ignore[attr-defined]
            {"model": weights, "optimizer": moments}, checkpoint_id=path
        )
    except (OSError, RuntimeError, KeyError, ValueError, AssertionError, CheckpointException) as error:
        raise ClairError(
            f"{one_line(str(path))}: damaged, or not of this model: {_reason(error)}. Remove this folder, "
            "and --resume takes the checkpoint before it."
        ) from error
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=_LOADING)
    own = path / f"random-{_rank()}.pt"
    if own.is_file():
        try:
            _set_random_state(torch.load(own, weights_only=False))
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise ClairError(f"{one_line(str(own))}: damaged: {one_line(str(error), 200)}") from error
    return Progress(state["step"], state["num_tokens"], state["seconds"])


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises UsageError that names what differs from the settings that a checkpoint was made with. One that
    it does not state came after it."""
    then = read_state(path)["settings"]
    changed = [
        f"{name.replace('_', '-')} was {then[name]!r} and is {value!r}"
        for name, value in settings.items()
        if name in then and then[name] != value
    ]
    if changed:
        raise UsageError(
            f"{one_line(str(path))} is of a run with other settings: {'; '.join(changed)}. Take "
            "these again, or "
            "another --output-dir."
        )


def save_model(policy: Any, tokenizer: Any, folder: Path) -> None:
    """Writes the trained model as `AutoModelForCausalLM` and `AutoTokenizer` load it, each file whole.

    Called by all processes at once; the first one writes. With adapters these are written (peft).
    """
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    sharded = any(hasattr(p, "full_tensor") for p in policy.parameters())
    weights = get_model_state_dict(policy, options=full) if sharded else None
    if _rank() == 0:
        if weights is not None:
            # What is tied came twice; as one tensor it is written once.
            first: dict[int, str] = {}
            for name, parameter in policy.named_parameters(remove_duplicate=False):
                weights[name] = weights[first.setdefault(id(parameter), name)]
            weights = {name.removeprefix("causal_lm."): tensor for name, tensor in weights.items()}
        temporary = folder / f".model{_ENDING}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            policy.causal_lm.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        except OSError as error:
            raise ClairError(
                f"{one_line(str(folder))}: the model could not be written: {error.strerror or error}. "
                "The last checkpoint stands; --resume writes it without training again."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _barrier()


# Frozen weights come from the base model again.
_OPTIONS = StateDictOptions(ignore_frozen_params=True)
# So a state without them is whole: what a checkpoint lacks of the others, dcp.load has found already.
_LOADING = StateDictOptions(ignore_frozen_params=True, strict=False)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _reason(error: BaseException) -> str:
    """What went wrong, in a line; of PyTorch's exception over all processes (no `Exception`, so nothing
    else would catch it) what the first of them said."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    said = error.strerror if isinstance(error, OSError) else None
    return one_line(said or str(error), 300)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Has the disk know of a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
