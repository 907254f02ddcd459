"""Whole runs of a tiny model, by the command that users type."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import FLAGS, arguments, assert_near, metrics, weights, write_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

from clair_apo import train_model
from clair_apo.errors import ClairError, UsageError
from clair_apo.train.options import TrainOptions, add_arguments
from trl_step import tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with matrices that are large enough for 8-bit moments."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_model(folder, hidden_size=64, intermediate_size=160)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


@pytest.fixture
def run(model: Path, pairs: Path, tmp_path: Path) -> Any:
    """Trains in a folder of that name; the same defaults for all tests."""

    def train(name: str, **flags: Any) -> Path:
        given = {"model": str(model), "pairs": str(pairs), "output_dir": str(tmp_path / name), **FLAGS}
        train_model(**{**given, **flags})
        return tmp_path / name

    return train


@pytest.mark.parametrize(
    ("objective", "loss"),
    [("apo-zero", 1), ("apo-down", 1), ("dpo", math.log(2)), ("kto-pair", 0.5)],
)
def test_the_first_loss_is_what_theory_says(run: Any, objective: str, loss: float) -> None:
    folder = run(objective, objective=objective, max_steps=1)
    (record,) = metrics(folder)
    assert abs(record["loss"] - loss) < 1e-6
    assert abs(record["rewards/chosen"]) < 1e-6
    assert record["sharing"] > 1


@pytest.mark.parametrize("objective", ["apo-zero", "apo-down", "dpo"])
def test_likelihoods_move_as_the_objective_says(run: Any, objective: str) -> None:
    last = metrics(run(objective, objective=objective, num_train_epochs=6, batch_size=18))[-1]
    chosen, rejected = last["logps/chosen_relative"], last["logps/rejected_relative"]
    assert rejected < 0
    assert chosen > rejected
    if objective == "apo-zero":
        assert chosen > 0
    if objective == "apo-down":
        assert chosen < 0


@pytest.mark.parametrize(
    "flags",
    [
        {"tokens_per_microbatch": 1},
        {"tokens_per_microbatch": 1000},
        {"no_share": True},
        {"activation_budget": 1},
        {"reference": "live"},
        {"logging_steps": 3},
    ],
    ids=lambda flags: next(iter(flags)) + str(next(iter(flags.values()))),
)
def test_how_a_step_is_run_does_not_change_it(run: Any, flags: dict[str, Any]) -> None:
    assert_near(run("plain"), run("other", **flags), 2e-6)


@pytest.mark.parametrize(
    ("number", "status", "dtype"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "auto"),
        (signal.SIGKILL, -signal.SIGKILL, "bfloat16"),
        (signal.SIGINT, 130, "auto"),
        (signal.SIGTERM, 3, "auto"),
    ],
    ids=["kill", "kill in bf16", "ctrl-c", "term"],
)
def test_a_stopped_run_goes_on_bit_by_bit(
    run: Any, model: Path, wide: Path, pairs: Path, tmp_path: Path, number: int, status: int, dtype: str
) -> None:
    model = wide if dtype == "bfloat16" else model
    flags: dict[str, Any] = {"num_train_epochs": 8, "save_steps": 3, "dtype": dtype, "model": str(model)}
    whole = run("whole", **flags)
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "clair_apo.train", *arguments(model, pairs, folder)]
    command += ["--num-train-epochs", "8", "--save-steps", "3", "--dtype", dtype]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    written = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (written.exists() and written.read_text().count("\n") >= 5):
        assert process.poll() is None or written.exists(), process.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    if process.returncode == 0:
        pytest.fail("the run was over before it could be stopped")
    assert process.returncode == status, said
    if number != signal.SIGKILL:
        assert "--resume" in said
    run("stopped", resume="newest", **flags)
    one, two = weights(whole), weights(folder)
    assert all(torch.equal(one[name], two[name]) for name in one)
    timing = {"seconds", "data_wait", "peak_memory_gib"}
    for a, b in zip(metrics(whole), metrics(folder), strict=True):
        for name in a.keys() - timing:
            assert "per_second" in name or a[name] == b[name], (name, a["step"])


def test_a_folder_that_holds_a_run_is_not_written_over(run: Any) -> None:
    run("once", max_steps=1)
    with pytest.raises(UsageError, match=r"holds a run already: --resume"):
        run("once", max_steps=1)
    with pytest.raises(UsageError, match=r"beta was 0\.1 and is 0\.5"):
        run("once", max_steps=1, resume="newest", beta=0.5)


def test_references_are_computed_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = metrics(run("first"))

    def refused(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("clair_apo.train.reference.References.put", refused)
    again = metrics(run("again", objective="dpo"))
    assert again[0]["logps/chosen"] == first[0]["logps/chosen"]


def test_the_trained_folder_answers_a_prompt(run: Any) -> None:
    folder = run("trained")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trained = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 ?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = trained.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]
    assert (folder / "README.md").read_text().startswith("---")
    assert "<svg" in (folder / "training.html").read_text()
    facts = json.loads((folder / "train.json").read_text())
    assert facts["steps"] == 5
    assert facts["finished_at"]
    assert facts["pairs_used"] == facts["rows"] - sum(facts["dropped"].values()) == 18


def test_adapters_start_as_the_reference_and_are_what_is_saved(run: Any, model: Path) -> None:
    folder = run("lora", lora_rank=2)
    assert metrics(folder)[0]["loss"] == pytest.approx(1, abs=1e-6)
    assert metrics(folder)[-1]["rewards/margins"] != 0
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    trained = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(trained(ids).logits, base(ids).logits)


def test_a_first_loss_that_is_not_what_theory_says_stops_the_run(run: Any, tmp_path: Path) -> None:
    run("first")
    (cache,) = (tmp_path / "cache").rglob("*.npy")
    records = np.load(cache)
    records["chosen"] += 1  # as if they were another model's
    np.save(cache, records)
    with pytest.raises(ClairError, match=r"first loss is 1\.02.* and must be 1: .*Nothing was changed"):
        run("second")


def test_numbers_that_are_none_stop_the_run_in_words(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ClairError, match=r"of step \d+ is (nan|inf)"):
        run("nan", learning_rate=1e30, num_train_epochs=5, max_grad_norm=1e30)
    assert not (tmp_path / "nan" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"allow_bf16_updates": True}, "needs --dtype bfloat16"),
        ({"allow_bf16_updates": True, "dtype": "bfloat16", "lora_rank": 2}, "adapters are float32"),
        ({"label_smoothing": 0.1}, "defined for dpo"),
        ({"sharding": "fsdp"}, "needs several processes"),
        ({"attention": "varlen"}, "CUDA only"),
        ({"kernels": "fused"}, "fused is not possible here: .*TRITON_INTERPRET=1.*; lean and plain are"),
        ({"lora_alpha": 4}, "needs --lora-rank"),
        ({"eval_steps": 4}, "needs --eval-pairs"),
        ({"objective": "sft", "sft_weight": 1}, "sft itself needs none"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(run: Any, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run("refused", **{"learning_rate": 2e-7, **flags})


def test_trackers_get_what_is_logged(run: Any) -> None:
    folder = run("tracked", report_to="tensorboard", max_steps=2)
    assert list(folder.rglob("events.out.tfevents*"))


def test_memory_that_is_missing_is_said_with_what_to_change(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("clair_apo.train.loop.pack", full)
    with pytest.raises(ClairError, match=r"out of memory\. Lower --tokens-per-microbatch \(now 60\)"):
        run("full")


def test_the_hub_gets_the_folder_without_checkpoints(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo: str, **settings: Any) -> None:
            calls["repo"] = (repo, settings["private"])

        def upload_folder(self, **settings: Any) -> None:
            calls.update(settings)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    folder = run("pushed", max_steps=1, push_to_hub="me/mine")
    assert calls["repo"] == ("me/mine", True)
    assert calls["folder_path"] == folder
    assert "checkpoints/*" in calls["ignore_patterns"]


@pytest.mark.parametrize("recipe", sorted(p.name for p in (ROOT / "recipes").glob("*.yaml")))
def test_recipes_hold_flags_that_go_together(recipe: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = []
    for name, value in yaml.safe_load((ROOT / "recipes" / recipe).read_text()).items():
        words += [f"--{name}", str(value)]
    TrainOptions.of(parser.parse_args([*words, "--pairs", "p.parquet", "--output-dir", str(tmp_path)]))


def test_auto_takes_the_objective_that_the_evidence_picks(
    run: Any, pairs: Path, model: Path, tmp_path: Path
) -> None:
    table = pq.read_table(pairs)
    count = table.num_rows
    for objective, method in (("apo-zero", "clair"), ("apo-down", "off_policy_judge")):
        columns = {"method": [method] * count, "rejected_model": [model.name] * count}
        columns["chosen_model"] = ["a stronger one"] * count
        if method == "off_policy_judge":
            columns["rejected_model"] = ["another"] * count
        path = tmp_path / f"{method}.parquet"
        pq.write_table(pa.table({**{n: table[n] for n in table.column_names}, **columns}), path)
        folder = run(method, pairs=str(path), objective="auto", max_steps=1)
        assert json.loads((folder / "train.json").read_text())["objective"] == objective
    with pytest.raises(ClairError, match="--objective apo-zero"):
        run("no evidence", objective="auto")


def test_adapters_are_taken_off_for_a_live_reference(run: Any) -> None:
    cached = metrics(run("cached", lora_rank=2, learning_rate=1e-2))
    live = metrics(run("live", lora_rank=2, learning_rate=1e-2, reference="live"))
    for a, b in zip(cached, live, strict=True):
        assert a["rewards/margins"] == pytest.approx(b["rewards/margins"], abs=1e-5)
    assert abs(live[-1]["rewards/margins"]) > 1e-3


def test_bare_bfloat16_trains_at_a_rate_that_moves_it(run: Any) -> None:
    folder = run("bf16", dtype="bfloat16", allow_bf16_updates=True, num_train_epochs=4)
    first, *_, last = metrics(folder)
    assert first["loss"] == pytest.approx(1, abs=1e-6)
    assert last["logps/rejected_relative"] < 0
    assert weights(folder)["lm_head.weight"].dtype == torch.bfloat16


def test_bf16_weights_with_low_bits_train_as_float32_ones(run: Any, wide: Path) -> None:
    """At a rate whose steps are far below a bf16 step of most weights."""
    flags = {"model": str(wide), "learning_rate": 1e-5, "num_train_epochs": 6}
    exact = metrics(run("float32", **flags))
    folder = run("bf16", dtype="bfloat16", **flags)
    first, *_, last = metrics(folder)
    assert first["loss"] == pytest.approx(1, abs=1e-6)
    assert last["rewards/margins"] == pytest.approx(exact[-1]["rewards/margins"], rel=0.1)
    facts = json.loads((folder / "train.json").read_text())
    assert facts["weights"] == "bfloat16 with 16 low bits (exact float32), 8-bit moments"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"moments was '8bit' and is 'float32'"):
        run("bf16", dtype="bfloat16", moments="float32", resume=True, **flags)


def test_adapters_on_bf16_weights_are_float32(run: Any) -> None:
    folder = run("adapters", dtype="bfloat16", lora_rank=2)
    assert metrics(folder)[0]["loss"] == pytest.approx(1, abs=1e-6)
    assert {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def resumed_from(run: Any, name: str, step: int, **flags: Any) -> Path:
    """A finished run whose checkpoints after `step` are lost, gone on with."""
    folder: Path = run(name, save_steps=step, save_total_limit=9, **flags)
    for path in (folder / "checkpoints").iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    run(name, save_steps=step, save_total_limit=9, resume=True, **flags)
    return folder


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_adapters_go_on_bit_by_bit(run: Any, reference: str) -> None:
    flags = {"lora_rank": 2, "learning_rate": 1e-2, "reference": reference}
    whole = load_file(run("whole", **flags) / "adapter_model.safetensors")
    again = load_file(resumed_from(run, "again", 2, **flags) / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_no_checkpoint_holds_numbers_that_are_none(run: Any, tmp_path: Path) -> None:
    flags = {"learning_rate": 1e30, "num_train_epochs": 5, "max_grad_norm": 1e30}
    with pytest.raises(ClairError, match=r"of step [2-9] is (nan|inf)"):
        run("nan", save_steps=1, logging_steps=1000, **flags)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "random-0.pt", "state.json"])
def test_a_damaged_checkpoint_is_named(run: Any, name: str) -> None:
    folder = run("damaged", save_steps=2)
    newest = max((folder / "checkpoints").iterdir())
    (newest / name).write_bytes(b"{}")
    with pytest.raises(ClairError, match=f"{newest.name}.*(damaged|not of this model)"):
        run("damaged", save_steps=2, resume=True)


def test_a_model_is_not_written_over_by_what_comes_of_it(run: Any, model: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="--output-dir is the folder of --model"):
        run("over", model=str(model), output_dir=str(model))
    assert (model / "model.safetensors").read_bytes() == before
