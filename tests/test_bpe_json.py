"""Token counts by a `tokenizer.json`, against the library `tokenizers`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import clair_apo.text as text
from clair_apo import _core, encodings
from test_bpe import ALL_CHARACTERS, real_texts, texts

tokenizers: Any = pytest.importorskip("tokenizers")

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CAPITALS, SMALLS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(contractions: str, digits: str) -> str:
    words = [rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}{a}{SMALLS}{b}{contractions}" for a, b in ("*+", "+*")]
    return "|".join([*words, digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", SPACE])


def uncased(digits: str) -> str:
    return rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACE}"


PATTERNS = {
    "llama3": uncased(r"\p{N}{1,3}"),
    "qwen2": uncased(r"\p{N}"),
    "o200k": cased(f"{CONTRACTIONS}?", r"\p{N}{1,3}"),
    "tekken": cased("", r"\p{N}"),
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt2-short": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split_by(pattern: str, **how: Any) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **how}
    return {"type": "Sequence", "pretokenizers": [split, byte_level(False)]}


DIGITS = {"type": "Digits", "individual_digits": True}
SHAPES: dict[str, dict[str, Any]] = {
    **{name: split_by(pattern) for name, pattern in PATTERNS.items()},
    "removed": split_by(PATTERNS["llama3"], behavior="Removed", invert=True),
    "byte-level": byte_level(True),
    "digits": {"type": "Sequence", "pretokenizers": [DIGITS, byte_level(True)]},
}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """The file of a small tokenizer, trained on words of several scripts."""
    pick = random.Random(1)
    words = ["the", "and", "ing", "tion", "over", "naïve", "Über", "привет", "мир", "漢字", "かな"]
    words += ["こんにちは", "안녕", "I'll", "don't", "100", "2024"]
    lines = [" ".join(pick.choices(words, k=12)) + "\n" * pick.randrange(3) for _ in range(400)]
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(lines, trainer)
    whole: dict[str, Any] = json.loads(model.to_str())
    return whole


@pytest.fixture
def variant(trained: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the trained tokenizer with parts of it changed."""

    def write(model: dict[str, Any] | None = None, **parts: Any) -> Path:
        path = tmp_path / "tokenizer.json"
        changed = {**trained, **parts, "model": {**trained["model"], **(model or {})}}
        path.write_text(json.dumps(changed), "utf-8")
        return path

    return write


def reason(path: Path) -> str:
    """Why a file is not counted by the core, or nothing."""
    _, why = _core.tokenizer_of_json(path.read_bytes())
    return why


def check_any_text(path: Path, extra: list[str] | None = None) -> None:
    library = tokenizers.Tokenizer.from_file(str(path))
    encoding = path

    def differing(samples: list[str]) -> list[tuple[str, int, int]]:
        theirs = [len(one) for one in library.encode_batch_fast(samples, add_special_tokens=False)]
        ours = text.count_tokens(samples, encoding).to_pylist()
        return [row for row in zip(samples, theirs, ours, strict=True) if row[1] != row[2]]

    @settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts, texts)
    def check(one: str, other: str) -> None:
        assert differing([one, one + "<|endoftext|>" + other, "漢字 the over" + other]) == []

    check()
    assert differing(extra or []) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_that_is_counted_here(shape: str, variant: Callable[..., Path]) -> None:
    path = variant(pre_tokenizer=SHAPES[shape])
    assert reason(path) == ""
    check_any_text(path)


@pytest.mark.parametrize("shape", ["digits", "qwen2", "o200k"])
def test_every_character(shape: str, variant: Callable[..., Path]) -> None:
    path = variant(pre_tokenizer=SHAPES[shape], normalizer={"type": "NFC"})
    assert reason(path) == ""
    samples = [f" {c} 1{c}A{c}a\u0301{c}" for c in ALL_CHARACTERS]
    check_any_text(path, ["".join(samples[at : at + 16]) for at in range(0, len(samples), 16)])


def test_merges_as_lines_and_ignored(variant: Callable[..., Path], trained: dict[str, Any]) -> None:
    lines = [" ".join(merge) for merge in trained["model"]["merges"]]
    path = variant(model={"merges": lines})
    assert reason(path) == ""
    check_any_text(path)
    # Tokens that no merge makes: whole pieces are looked up.
    vocab = dict(trained["model"]["vocab"])
    vocab |= {word: len(vocab) + i for i, word in enumerate(["Ġoverweight", "æ¼¢åŃĹä»®åĲįäº¤", "xyz"])}
    for ignored in (True, False):
        path = variant(model={"vocab": vocab, "ignore_merges": ignored})
        assert reason(path) == ""
        check_any_text(path, ["an overweight xyz", "overweight xyzx", "漢字仮名交 漢字仮名交じり"])


def test_several_merges_to_one_token(variant: Callable[..., Path], trained: dict[str, Any]) -> None:
    """As in Llama 3's file, which lists every way to make a token out of two."""
    vocab = trained["model"]["vocab"]
    made = ["".join(merge) for merge in trained["model"]["merges"]]
    splits = [(name[:at], name[at:]) for name in made for at in range(1, len(name))]
    merges = [[a, b] for a, b in splits if a in vocab and b in vocab]
    assert len(merges) > len(made)
    path = variant(model={"merges": merges})
    assert reason(path) == ""
    check_any_text(path)


@pytest.mark.parametrize("unknown", [None, "<|endoftext|>"])
def test_bytes_without_a_token(
    unknown: str | None, variant: Callable[..., Path], trained: dict[str, Any]
) -> None:
    """SmolLM's vocabulary lacks some control characters."""
    vocab = {t: i for t, i in trained["model"]["vocab"].items() if t not in ("ĉ", "Ā", "ģ", "Ī", "ı")}
    kept = [merge for merge in trained["model"]["merges"] if all(part in vocab for part in merge)]
    kept = [merge for merge in kept if "".join(merge) in vocab]
    path = variant(model={"vocab": vocab, "merges": kept, "unk_token": unknown})
    assert reason(path) == ""
    check_any_text(path, ["th\0e \0\0 o\tver", "\0", "\t", "\0the\t" * 20, "\x81\x88\x8d 漢"])


def test_added_tokens(variant: Callable[..., Path], trained: dict[str, Any]) -> None:
    def token(content: str, normalized: bool) -> dict[str, Any]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
        return {"id": 5000 + len(content), "content": content, "normalized": normalized, **flags}

    added = [*trained["added_tokens"], token("the", True), token("there", False), token("漢字", True)]
    added += [token("<|endoftext|><|", False)]
    path = variant(added_tokens=added)
    assert reason(path) == ""
    check_any_text(path, ["there the therethe theth ere 漢漢字字", "<|endoftext|><|endoftext|><|"])


def test_truncation_and_padding_are_off(variant: Callable[..., Path]) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    samples = ["the and over", "the and over " * 30]
    plain = text.count_tokens(samples, variant()).to_pylist()
    assert text.count_tokens(samples, variant(truncation=truncation, padding=padding)).to_pylist() == plain
    unknown = variant(
        truncation=truncation,
        padding=padding,
        normalizer={"type": "Strip", "strip_left": False, "strip_right": False},
    )
    assert reason(unknown)
    assert text.count_tokens(samples, unknown).to_pylist() == plain


def others(trained: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    stripped = [{**trained["added_tokens"][0], "lstrip": True}]
    normalized = [{**trained["added_tokens"][0], "normalized": True}]
    spaced = {**byte_level(True), "add_prefix_space": True}
    merges = trained["model"]["merges"]
    return {
        "lower case": ({"normalizer": {"type": "Lowercase"}}, "the normalizer"),
        "another pattern": ({"pre_tokenizer": split_by(r"\p{L}+|\P{L}+")}, "the pre-tokenizer"),
        # Oniguruma reads possessive counts and `$` in other ways than tiktoken.
        "cl100k": ({"pre_tokenizer": split_by(r"'(?i:[sdmt])|\p{L}++|\s++$|\s|[^\s\p{L}]")}, "the pre-tok"),
        "merged": (
            {"pre_tokenizer": split_by(PATTERNS["qwen2"], behavior="MergedWithNext")},
            "the pre-tok",
        ),
        "space in front": ({"pre_tokenizer": spaced}, "the pre-tokenizer"),
        "no cut": ({"pre_tokenizer": byte_level(False)}, "the pre-tokenizer"),
        "digits together": (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": False}, byte_level(True)],
                }
            },
            "the pre-tokenizer",
        ),
        "stripped": ({"added_tokens": stripped}, "single_word, lstrip or rstrip"),
        "normalized": (
            {"added_tokens": normalized, "normalizer": {"type": "NFC"}},
            "normalized added token",
        ),
        "suffix": ({"model": {"end_of_word_suffix": "</w>"}}, "prefix or suffix"),
        "merges in another order": (
            {"model": {"merges": merges[::-1]}},
            "before those that make its parts",
        ),
    }


@pytest.mark.parametrize("name", list(others({"added_tokens": [{}], "model": {"merges": []}})))
def test_other_shapes_are_counted_by_the_library(
    name: str, variant: Callable[..., Path], trained: dict[str, Any]
) -> None:
    parts, why = others(trained)[name]
    path = variant(**parts)
    assert why in reason(path)
    check_any_text(path)
    assert text.count_tokens(["the", None, ""], path).to_pylist()[1:] == [None, 0]
    with pytest.raises(TypeError, match="`column` is of type"):
        text.count_tokens(7, path)  # type: ignore[arg-type]


def test_without_the_library(variant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = variant(normalizer={"type": "Lowercase"})
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'normalizer \{"type":"Lowercase"\}, .* pip install tokenizers'):
        text.count_tokens(["a"], path)
    assert text.count_tokens(["a"], variant()).to_pylist() == [1]


def test_paths(variant: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = variant()
    for name in (path, str(path), tmp_path, str(tmp_path)):
        assert text.count_tokens(["the"], name).to_pylist() == [1]
    monkeypatch.chdir(tmp_path.parent)
    assert text.count_tokens(["the"], tmp_path.name).to_pylist() == [1]
    with pytest.raises(FileNotFoundError):
        text.count_tokens(["a"], tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"version": "1.0", ')
    with pytest.raises(ValueError, match=r"broken.json: the tokenizer file is no JSON: .* line 1"):
        text.count_tokens(["a"], tmp_path / "broken.json")
    (tmp_path / "other.json").write_text('{"name": "a package"}')
    with pytest.raises(ValueError, match=r"other.json is no tokenizer"):
        text.count_tokens(["a"], tmp_path / "other.json")


def test_a_changed_file_is_read_again(variant: Callable[..., Path]) -> None:
    assert text.count_tokens(["100"], variant()).to_pylist() == [1]
    assert text.count_tokens(["100"], variant(pre_tokenizer=SHAPES["digits"])).to_pylist() == [3]


def test_the_embedded_model(tmp_path: Path, shared_data: Path) -> None:
    from clair_apo.llm import local

    try:
        weights, _ = local._embedded_weights()
    except Exception as error:
        pytest.skip(str(error))
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    loaded.save_pretrained(tmp_path)
    assert reason(tmp_path / "tokenizer.json") == ""
    check_any_text(tmp_path / "tokenizer.json", real_texts(shared_data))
    assert isinstance(encodings.counter_of(tmp_path), _core.Tokenizer)
