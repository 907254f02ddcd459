"""Runs in two processes on CPUs, with the code that GPUs run. All but one happen in one launch."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import FLAGS, arguments, assert_near, metrics, weights, write_pairs

from clair_apo import train_model
from trl_step import tiny_model

pytestmark = pytest.mark.timeout(1800)  # the first test makes all runs

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
DEEP: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 8}
# Four to six microbatches a step and process, six steps.
LONG: dict[str, Any] = {"batch_size": 9, "num_train_epochs": 3, "tokens_per_microbatch": 1}


def in_two_processes(words: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.run([*LAUNCH, *words], env=environment, capture_output=True, text=True, check=False)


@dataclass
class Everything:
    """`folder`: of runs in one process (`one-…`) and in two; `seen`: by run and process, what it saw;
    `said`: what the launch printed."""

    folder: Path
    models: dict[str, Path]
    pairs: Path
    seen: dict[str, list[dict[str, Any]]]
    said: str
    status: int


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"small": {}, "wide": {"hidden_size": 64, "intermediate_size": 160}, "deep": DEEP}
    models = {name: folder / f"model-{name}" for name in sizes}
    for name, path in models.items():
        tiny_model(path, **sizes[name], tie_word_embeddings=name == "deep")
    pairs = write_pairs(folder / "pairs.parquet")
    bf16 = {"model": "wide", "dtype": "bfloat16", "save_steps": 2, "save_total_limit": 9}
    adapters = {"model": "deep", "lora_rank": 2, "learning_rate": 1e-2}
    evaluated = {"eval_pairs": str(pairs)}

    def flags(name: str, given: dict[str, Any]) -> dict[str, Any]:
        paths = {"model": str(models[given.get("model", "small")]), "pairs": str(pairs)}
        return {**FLAGS, "output_dir": str(folder / name), **given, **paths}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, given in {
            "one": evaluated,
            "one-bf16": bf16,
            "one-deep": {"model": "deep"},
            "one-adapters": adapters,
            "one-adapters-bf16": {**adapters, "dtype": "bfloat16"},
        }.items():
            train_model(**flags(name, given))
    shutil.copytree(folder / "one-bf16", folder / "bf16-resumed")
    for step in (4, 5):
        shutil.rmtree(folder / "bf16-resumed" / "checkpoints" / f"step-0000000{step}")
    runs: dict[str, dict[str, Any]] = {
        "ddp": {"sharding": "ddp", **evaluated},
        "ddp-live": {"sharding": "ddp", "reference": "live", **evaluated},
        "fsdp-live": {"reference": "live", **evaluated},
        "bf16": bf16,
        "bf16-resumed": {**bf16, "resume": True},
        "deep": {"model": "deep"},
        "adapters": adapters,
        "adapters-bf16": {**adapters, "dtype": "bfloat16"},
        "whole": {"model": "deep", **LONG},
        "stopped": {"model": "deep", **LONG},
        "stopped-resumed": {"model": "deep", **LONG, "output_dir": str(folder / "stopped"), "resume": True},
        "common": {},
        "alone": {"save_steps": 1},
    }
    written = []
    for name, given in runs.items():
        each: dict[str, Any] = {"flags": flags(name, {"sharding": "fsdp", **given})}
        if name == "deep":
            each["weigh"] = True
        if name == "stopped":
            each["interrupt"] = 12
        if name in ("common", "alone"):
            each["command"] = True
            del each["flags"]["quiet"]
        if name == "common":
            each["flags"]["pairs"] = str(folder / "nowhere.parquet")
        if name == "alone":
            each["fail"] = 2
        written.append(each)
    file = folder / "runs.json"
    file.write_text(json.dumps(written))
    done = in_two_processes([str(Path(__file__).with_name("two_processes.py")), str(file)], folder / "x")
    try:
        both = [json.loads(file.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1)]
    except OSError:
        pytest.fail(done.stderr)
    seen = {name: list(at) for name, at in zip(runs, zip(*both, strict=True), strict=False)}
    assert "common" in seen, done.stderr
    return Everything(folder, models, pairs, seen, done.stderr, done.returncode)


@pytest.fixture(scope="module")
def command(everything: Everything) -> Path:
    """A run by the command itself."""
    folder = everything.folder / "command"
    words = arguments(everything.models["small"], everything.pairs, folder)
    words += ["--sharding", "fsdp", "--eval-pairs", str(everything.pairs)]
    done = in_two_processes(["-m", "clair_apo.train", *words], everything.folder / "another cache")
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_metrics(one: Path, two: Path) -> None:
    for a, b in zip(metrics(one), metrics(two), strict=True):
        for name in ("loss", "eval_loss", "logps/chosen", "rewards/margins", "eval_rewards/accuracies"):
            if name in a:
                assert math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=1e-6), name
        if "pairs" in a:
            assert (a["pairs"], a["tokens"], a["num_tokens"]) == (b["pairs"], b["tokens"], b["num_tokens"])


# AdamW makes a whole step of a gradient of next to nothing, where the order of sums counts: a deep model's
# weights are held to 1% of their way.
@pytest.mark.parametrize(
    ("one", "two", "tolerance"),
    [
        ("one", "ddp", 2e-6),
        ("one", "ddp-live", 2e-6),
        ("one", "fsdp-live", 2e-6),
        ("one-deep", "deep", 3e-5),
    ],
)
def test_two_processes_equal_one(everything: Everything, one: str, two: str, tolerance: float) -> None:
    assert_near(everything.folder / one, everything.folder / two, tolerance)
    assert_same_metrics(everything.folder / one, everything.folder / two)


def test_the_command_in_two_processes_equals_one(everything: Everything, command: Path) -> None:
    assert_near(everything.folder / "one", command, 2e-6)
    assert_same_metrics(everything.folder / "one", command)


@pytest.mark.parametrize("kind", ["adapters", "adapters-bf16"])
def test_adapters_in_two_processes_equal_those_of_one(everything: Everything, kind: str) -> None:
    """By what they make likely: gradients of the first half are nothing but rounding in the first step."""
    one, two = everything.folder / f"one-{kind}", everything.folder / kind
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=1e-3 if kind.endswith("bf16") else 1e-6)
    assert abs(metrics(one)[-1]["loss"] - 1) > 0.02


@pytest.mark.parametrize("two", ["bf16", "bf16-resumed"])
def test_sharded_bf16_weights_equal_those_of_one_process(everything: Everything, two: str) -> None:
    """Within the rounding of bf16 gradients, which processes add in another order, and processors in
    another precision: 2% of the way that weights and losses went. A checkpoint of one process goes on in
    two."""
    start = weights(everything.models["wide"])
    one, other = everything.folder / "one-bf16", everything.folder / two
    found, wanted = weights(other), weights(one)
    way = sum(float((wanted[name].float() - start[name]).abs().sum()) for name in start)
    apart = sum(float((wanted[name].float() - found[name].float()).abs().sum()) for name in start)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert apart < 0.02 * way
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert math.isclose(a["loss"], b["loss"], abs_tol=1e-6 + 0.02 * abs(1 - a["loss"]))


def test_only_the_first_process_holds_the_whole_model(everything: Everything) -> None:
    """The other has half of the layers that are sharded and one that is not: with eight, 9/16 of all."""
    whole = sum(tensor.nbytes for tensor in weights(everything.models["deep"]).values())
    first, second = (seen["most"] for seen in everything.seen["deep"])
    assert first >= whole
    assert second < 0.7 * whole


def test_a_stop_amid_a_step_is_at_the_same_place_in_all_processes(everything: Everything) -> None:
    first, second = everything.seen["stopped"]
    assert first["said"] == second["said"] == "stopped after step 2 of 6. --resume goes on from there."
    assert first["since"] == second["since"] > 0  # microbatches of a step that was not made
    whole, again = (weights(everything.folder / name) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_goes_wrong_in_all_processes_is_said_once(everything: Everything) -> None:
    assert [seen["said"] for seen in everything.seen["common"]] == ["status 1", "status 1"]
    lines = [line for line in everything.said.splitlines() if "nowhere.parquet" in line]
    assert len(lines) == 1
    assert "rank" not in lines[0]


def test_a_process_that_fails_alone_is_named_and_the_others_end(everything: Everything) -> None:
    assert everything.status == 1
    lines = [line for line in everything.said.splitlines() if line.startswith("clair-apo: ")]
    assert "clair-apo: rank 1: no room here" in lines
    assert sum("no room here" in line for line in lines) == 1
    (lost,) = (line for line in lines if "another process of this run was lost" in line)
    assert "step-00000002; --resume goes on from it" in lost
