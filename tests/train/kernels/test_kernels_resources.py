"""Every kernel, compiled ahead of time for three generations."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from clair_apo.train import kernels
from clair_apo.train.kernels.resources import GENERATIONS, Generation, specs
from clair_apo.train.kernels.spec import Spec

SPECS = list(specs())


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, int], dict[str, Any]]:
    """What the command says, in a process without the interpreter."""
    import os

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "clair_apo.train.kernels.resources", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return {(row["name"], row["capability"]): row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("gpu", GENERATIONS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_resources(spec: Spec, gpu: Generation, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    row = found[spec.name, gpu.capability]
    assert row["spilled"] == 0
    assert 0 < row["registers"] <= 255
    assert row["shared"] <= row["shared_limit"]
    assert row["programs"] >= 1
    assert (gpu.matrix in row["matrix"]) == spec.products
    assert 0 < row["share"] <= 1
    assert row["roofline_us"] > 0


def test_every_folder_of_kernels_is_in_the_table() -> None:
    assert {spec.name.split(":")[0] for spec in SPECS} >= {"head"}
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert kernels.available(cpu)  # interpreted, in this folder
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not kernels.available(cpu)
    assert kernels.available(cuda)
    monkeypatch.setattr(kernels, "installed", lambda: False)
    assert not kernels.available(cuda)


def test_the_command_says_what_hinders_it() -> None:
    command = [sys.executable, "-m", "clair_apo.train.kernels.resources"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "TRITON_INTERPRET" in done.stderr
