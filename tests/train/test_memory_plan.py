"""The plan of memory against the truth: PyTorch's own tracker over the same step, and a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_truth import CUDA, LLAMA_8B, deep, of_plan, options, plan, revisions, truth
from tiny_models import random_pair, tiny_model
from transformers import GptOssConfig, MixtralConfig, T5Config
from transformers.models.llama.modeling_llama import LlamaMLP

from clair_apo.cli import main, namespace
from clair_apo.errors import ClairError, UsageError
from clair_apo.train.memory.account import GIB, Spread
from clair_apo.train.memory.plan import Precision, Room, optimiser_state, plan_memory
from clair_apo.train.optim import make_optimizer
from clair_apo.train.options import TrainOptions
from clair_apo.train.packing import Packed, pack
from clair_apo.train.split import split_weights

# --- against the truth ---------------------------------------------------------------------------


def truth_of_8b(layers: int, batch: Packed, given: TrainOptions, budget: int) -> dict[str, float]:
    """Of four layers, or of more by what two more than four of them take: the tracker is slow."""
    four = truth(batch, given, budget, deep(4))
    if layers == 4:
        return four
    six = truth(batch, given, budget, deep(6))
    return {name: four[name] + (six[name] - four[name]) * (layers - 4) / 2 for name in four}


@pytest.mark.timeout(900)  # half a minute where nothing else runs
@pytest.mark.parametrize(
    ("layers", "budget", "kernels"),
    [(32, 2048, "auto"), (4, 4095, "plain"), (4, 4095, "auto"), (4, 1, "auto")],
    ids=["8B, half", "no layer twice, plain", "no layer twice", "every layer twice"],
)
def test_step_of_8b(layers: int, budget: int, kernels: str) -> None:
    """At the width of 8B; once at its depth too."""
    flags = {"tokens_per_microbatch": 4095, "activation_budget": budget, "kernels": kernels}
    batch = pack(revisions())
    assert batch.tokens == 4095
    found = plan(deep(layers), 200.0, longest=1239, **flags)
    expected = truth_of_8b(layers, batch, options(**flags), budget)
    assert of_plan(found) == pytest.approx(expected["Total"], rel=0.03)
    assert found.standing.weights / GIB == pytest.approx(expected["PARAM"], rel=1e-3)
    assert found.standing.gradients / GIB == pytest.approx(expected["GRAD"], rel=1e-3)
    rest = expected["Total"] - expected["PARAM"] - expected["GRAD"]
    assert found.choice is not None
    # With four layers the head decides, and a plan takes its chunk for full and all tokens for scored.
    assert 0.97 < found.choice.moment.peak / GIB / rest < (1.03 if layers == 32 else 1.15)


# Those that differ in what they keep: norms of heads, soft caps, one norm for attention and MLP.
KINDS = ("Llama", "Qwen3", "Gemma2", "Cohere")


def small(family: str) -> Any:
    """Of each family a model whose activations count beside its weights."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1000}
    windows = {"sliding_window": 8192} if family == "Gemma2" else {}  # one that no pair outgrows
    return tiny_model(family, **sizes, **windows, max_position_embeddings=1024).config


@pytest.mark.parametrize(
    ("family", "flags"),
    [*((family, {}) for family in KINDS), ("Llama", {"no_share": True})],
    ids=[*KINDS, "unshared"],
)
def test_other_families(family: str, flags: dict[str, Any]) -> None:
    config = small(family)
    if flags:
        config._attn_implementation = "sdpa"
    shapes = [(20, 44, 48, 48)] * 4
    rng = np.random.default_rng(0)
    batch = pack([random_pair(rng, *shape) for shape in shapes], share=not flags.get("no_share"))
    longest = batch.tokens // 4
    tokens = {"tokens_per_microbatch": batch.tokens, "dtype": "float32", "attention": "auto"}
    found = plan(config, 1.0, longest, **flags, **tokens, activation_budget=batch.tokens)
    expected = truth(batch, options(**flags, **tokens), batch.tokens, config)
    assert of_plan(found) == pytest.approx(expected["Total"], rel=0.03)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimiser_state(optimizer: str, dtype: str) -> None:
    """What is held behind a real step."""
    given = options(dtype=dtype, optimizer=optimizer)
    held = Precision.of(given, torch.device("cpu"))
    assert held.split == (dtype == "bfloat16")
    model = tiny_model("Llama", hidden_size=128)
    low = split_weights(model) if held.split else None
    made = make_optimizer(model.named_parameters(), given, low)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    state = [
        t for own in made.state.values() for t in own.values() if isinstance(t, torch.Tensor) and t.ndim
    ]
    expected = sum(t.numel() * t.element_size() for t in state)
    assert sum(optimiser_state(model, given, held)) == pytest.approx(expected, rel=1e-3)


REAL = """
import json, torch
from clair_apo.memory import spare_memory
spare_memory()
import numpy as np
from transformers import LlamaConfig
from clair_apo.train.memory.account import GIB, Spread
from clair_apo.train.memory.plan import Room, plan_memory
from clair_apo.train.memory.trace import imagined
from clair_apo.train.options import TrainOptions
from clair_apo.train.load import sharing
from clair_apo.train.optim import make_optimizer
from clair_apo.train.kernels.layers import install
from clair_apo.train.policy import Policy
from transformers import AutoModelForCausalLM

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

config = LlamaConfig(vocab_size=16384, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
                     num_attention_heads=8, num_key_value_heads=4)
cpu = torch.device("cpu")
options = TrainOptions("m", "", "", tokens_per_microbatch=1024, activation_budget=512)
plan = plan_memory(options, config, 512, Room(cpu, 8 * GIB, ""), Spread())
# Once small, so that what libraries allocate at their first use is not counted.
torch.nn.Linear(64, 64)(torch.ones(8, 64)).sum().backward()
before = status("VmRSS")
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
sharing(model, options, 512, cpu)
policy = Policy(model, budget=options.activation_budget).train()
install.install(model, install.makes("lean"))
optimizer = make_optimizer(policy.named_parameters(), options)
batch = imagined(512, 2)
for step in range(2):
    for micro in range(2):
        policy(batch, lambda chosen, rejected, _: torch.sigmoid(rejected - chosen))[0].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(json.dumps({"planned": plan.peak, "measured": status("VmHWM") - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_real_process() -> None:
    """A float32 step on a CPU, half of the layers twice: the resident set grows by what was planned, within
    a tenth."""
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] == pytest.approx(found["planned"], rel=0.1)


# --- what is picked ------------------------------------------------------------------------------


def test_8b_fits_one_gpu_of_80_gb() -> None:
    """Full weights with 16 low bits and 8-bit moments, 4,096 tokens at once, no layer run twice."""
    found = plan(LLAMA_8B)
    assert found.choice is not None
    assert (found.choice.tokens, found.choice.kept_layers) == (4096, 32)
    assert found.peak <= 74 * GIB
    assert found.parameters.total == found.parameters.trained == 8_030_261_248
    found.check()


def test_as_little_recomputation_as_fits() -> None:
    kept = []
    for room in (70.0, 140.0):
        found = plan(LLAMA_8B, room)
        assert found.choice is not None
        assert found.peak <= room * GIB
        kept.append(found.choice.kept_layers)
        if found.choice.kept_layers < found.layers:
            budget = -(-found.choice.tokens * (found.choice.kept_layers + 1) // found.layers)
            one_more = {"tokens_per_microbatch": found.choice.tokens, "activation_budget": budget}
            assert plan(LLAMA_8B, room, **one_more).choice is None
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == 32


def test_smaller_microbatches_where_4096_tokens_do_not_fit() -> None:
    found = plan(LLAMA_8B, 62.0, longest=500)
    assert found.choice is not None
    assert 500 <= found.choice.tokens < 4096


def test_the_longest_pair_decides_where_it_is_longer() -> None:
    found = plan(LLAMA_8B, 200.0, longest=6000)
    assert found.choice is not None
    assert found.choice.tokens == 6000


def test_tokens_that_are_given_stay_where_a_pair_is_longer() -> None:
    given, whole = (
        plan(LLAMA_8B, 200.0, longest=6000, tokens_per_microbatch=tokens).choice for tokens in (1000, 6000)
    )
    assert given is not None
    assert whole is not None
    assert (given.tokens, whole.tokens) == (1000, 6000)
    assert given.moment == whole.moment  # the pair has to fit


def test_prefixes_are_shared_where_no_sequence_outgrows_the_window() -> None:
    """However long a pair of two answers is."""
    window = small("Mistral")
    window.sliding_window = 80
    room, shared = Room(CUDA, GIB, "given"), plan(small("Mistral"), longest=120)
    short = plan_memory(options(), window, 120, room, Spread(), sequence=70)
    long = plan_memory(options(), window, 120, room, Spread(), sequence=90)
    assert short.peak == shared.peak != long.peak


@pytest.mark.parametrize("spread", [Spread(), Spread(8, sharded=False), Spread(2, sharded=True)])
def test_what_does_not_fit_says_what_would(spread: Spread) -> None:
    found = plan(LLAMA_8B, 24.0, spread=spread)
    assert found.choice is None
    with pytest.raises(ClairError, match="does not fit: one pair of 4,095 tokens") as raised:
        found.check()
    said = str(raised.value)
    assert "--lora-rank" in said
    assert ("--sharding fsdp" in said) != spread.sharded
    assert raised.value.exit_code == 1


def test_shards_hold_a_part_and_gather_layers() -> None:
    one, eight = plan(LLAMA_8B, 200.0), plan(LLAMA_8B, 200.0, spread=Spread(8, sharded=True))
    for name in ("weights", "low_bits", "gradients", "moments"):
        assert getattr(eight.standing, name) == pytest.approx(getattr(one.standing, name) / 8, abs=8)
    # Embedding and head to the end of a pass; of layers, two and the gradients of one as float32.
    around, layer = 2 * 128_256 * 4096 + 4096, 218_112_000
    assert eight.standing.gathered == 2 * around
    assert eight.choice is not None
    assert eight.choice.moment.gathered.layer == eight.choice.moment.gathered.reduced == 4 * layer


def test_a_live_reference_keeps_what_it_gathered() -> None:
    spread = Spread(2, sharded=True)
    cached, live = (plan(small("Llama"), spread=spread, reference=how) for how in ("cached", "live"))
    assert live.standing.reference == live.standing.weights
    assert live.standing.gathered == cached.standing.gathered + cached.parameters.outside_weights


def test_adapters_leave_the_rest_without_state() -> None:
    found = plan(LLAMA_8B, 24.0, lora_rank=16)
    assert found.choice is not None
    assert found.parameters.trained < found.parameters.total / 100
    assert found.standing.gradients < 1 * GIB


def test_experts() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = plan(MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=500))
    assert found.choice is not None
    assert "mlp" in {part.part for part in found.parts}


def test_layers_that_are_left_as_they_are_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The angles of GPT-OSS are half as many as its heads are wide."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    few = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 500, "num_local_experts": 4}
    found = plan(GptOssConfig(**sizes, **few))
    assert found.choice is not None
    assert not caplog.records


def test_what_hangs_on_contents_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum())

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    with pytest.raises(ClairError, match="cannot be planned"):
        plan(small("Llama"), kernels="plain")


def test_models_that_write_nothing_are_said() -> None:
    with pytest.raises(ClairError, match=r"cannot be planned: Unrecognized configuration class .*T5Config"):
        plan(T5Config())


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, and nothing else: no weights and no tokenizer."""
    small("Llama").save_pretrained(tmp_path)
    return tmp_path


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", str(folder), "--plan", "--plan-memory", "8"]) == 0
    said = capsys.readouterr().out
    assert "at the peak" in said
    assert "--tokens-per-microbatch 4096 --activation-budget 4096: no layer runs twice" in said
    assert max(map(len, said.splitlines()[1:])) <= 108


def test_command_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--model", str(folder), "--plan", "8", "--sharding", "fsdp", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert (found["processes"], found["sharded"]) == (8, True)
    parts = [
        found["standing"][name] for name in ("weights", "low_bits", "gradients", "moments", "gathered")
    ]
    assert found["standing"]["total"] == sum(parts) + found["standing"]["workspace"]
    assert found["peak"] == found["standing"]["total"] + found["moment"]["peak"]
    # A dozen numbers for each hidden number: norms, attention, gates.
    assert 8 < sum(part["size"] for part in found["kept_per_token"]) / (2 * 256) < 40


def test_a_plan_needs_a_model_only_wherever_it_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"plan: true\nplan-memory: 8\njson: true\nmodel: {folder}\n")
    assert main(["train", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
    called = namespace("train", {"model": str(folder), "plan": True})
    assert (called.pairs, called.output_dir) == ("", "")
    config.write_text(f"plan: false\nmodel: {folder}\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(config)])
    assert "--pairs" in capsys.readouterr().err
    with pytest.raises(UsageError, match="pairs is missing"):
        namespace("train", {"model": str(folder), "plan": False})


def test_command_that_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", str(folder), "--plan", "--plan-memory", "0.01"]) == 1
    out = capsys.readouterr()
    assert "at the peak" in out.out
    assert "does not fit" in out.err
    assert "Traceback" not in out.err


@pytest.mark.parametrize("given", ["81559", "1e300"])
def test_memory_in_other_units_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--model", str(folder), "--plan", "--plan-memory", given])
    assert ended.value.code == 2
    assert f"{given} GiB is more than any GPU has" in capsys.readouterr().err


def test_one_process_has_nothing_to_share_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", str(folder), "--plan", "--sharding", "fsdp"]) == 2
    assert "--plan N" in capsys.readouterr().err
