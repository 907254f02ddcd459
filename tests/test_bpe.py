"""Token counts of OpenAI's encodings, against tiktoken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clair_apo.text as text
from clair_apo import encodings

tiktoken: Any = pytest.importorskip("tiktoken")

# What the patterns tell apart, in any order.
TELLING = [
    *(
        "'s",
        "'S",
        "'ſ",
        "'ll",
        "'LL",
        "'Ve",
        "'r",
        "'",
        "a",
        "Zz",
        "hello",
        "WORLD",
        "é",
        "É",
        "ǅ",
        "ʰ",
        "ß",
    ),
    *("漢", "の", "क", "्", "ก", "ี", "ᄀ", "ᅡ", "\u0301", "\u0300", "\u200d", "👍", "🏽", "𝒜", "𐐀", "ª"),
    *("٣", "½", "Ⅷ", "1", "12", "1234", " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00a0", "\u3000"),
    *(
        "\u2028",
        "\x85",
        "\x0b",
        "\0",
        "/",
        "//",
        ".",
        "!?",
        "{",
        "_",
        "<|endoftext|>",
        "\ufeff",
        "\U000e0101",
    ),
]
texts = st.one_of(
    st.lists(st.sampled_from(TELLING), max_size=14).map("".join),
    st.text(max_size=60),
    st.text(st.characters(max_codepoint=0x7F), max_size=60),
    st.tuples(st.sampled_from(TELLING), st.integers(1, 600), st.text(max_size=3)).map(
        lambda t: t[0] * t[1] + t[2]
    ),
)
# Of planes 4 to 16, where all but a few of the fourteenth are unassigned or private, every 97th.
CODES = (
    *range(0xD800),
    *range(0xE000, 0x40000),
    *range(0x40000, 0xE0000, 97),
    *range(0xE0000, 0xE0200),
    *range(0xE0200, 0x110000, 97),
)
ALL_CHARACTERS = [chr(code) for code in CODES]


@pytest.fixture(scope="module")
def oracle(tiktoken_folder: Path) -> Iterator[Callable[[str], Any]]:
    """tiktoken's encodings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_folder))
        yield tiktoken.get_encoding


def differing(samples: list[str], name: str, oracle: Any) -> list[tuple[str, int, int]]:
    theirs = [len(oracle.encode_ordinary(sample)) for sample in samples]
    ours = text.count_tokens(samples, name).to_pylist()
    return [row for row in zip(samples, theirs, ours, strict=True) if row[1] != row[2]]


@pytest.mark.parametrize("name", text.ENCODINGS)
def test_any_text(name: str, oracle: Callable[[str], Any]) -> None:
    @settings(deadline=None, max_examples=400)
    @given(st.lists(texts, min_size=1, max_size=8))
    def check(samples: list[str]) -> None:
        assert differing(samples, name, oracle(name)) == []

    check()


@pytest.mark.parametrize("name", text.ENCODINGS)
def test_ascii_around_each_boundary(name: str, oracle: Callable[[str], Any]) -> None:
    ascii_ = ALL_CHARACTERS[:128]
    last = [" ", "\n", "'", "s", "S", "1", "/", "."]
    samples = [a + b + c for a in ascii_ for b in ascii_ for c in last]
    assert differing(samples, name, oracle(name)) == []


@pytest.mark.parametrize("name", text.ENCODINGS)
def test_every_character(name: str, oracle: Callable[[str], Any]) -> None:
    """The classes of characters are those of tiktoken's regular expressions, assigned or not."""
    samples = [f"A{c}a {c}1{c}{c} 's{c}\n{c}" for c in ALL_CHARACTERS]
    samples = ["".join(samples[at : at + 16]) for at in range(0, len(samples), 16)]
    assert differing(samples, name, oracle(name)) == []


@pytest.mark.parametrize("name", text.ENCODINGS)
def test_long_runs(name: str, oracle: Callable[[str], Any]) -> None:
    pick = random.Random(7)
    samples = [letter * 5_000 for letter in ("a", "é", "漢", " ", "\n", "=", "1", "ab", "A", "👍")]
    samples += ["".join(pick.choices(letters, k=4_000)) for letters in ("ab", "aeiou", "漢字仮名", "=-_")]
    assert differing(samples, name, oracle(name)) == []


def real_texts(folder: Path) -> list[str]:
    found: dict[str, None] = {}

    def walk(value: object) -> None:
        if isinstance(value, str):
            found[value] = None
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                walk(inner)

    for file in sorted(folder.glob("*.parquet")):
        walk(pq.read_table(file).to_pylist())
    for file in sorted(folder.glob("*.jsonl")):
        walk([json.loads(line) for line in file.read_text("utf-8").splitlines()])
    return list(found)


@pytest.mark.parametrize("name", text.ENCODINGS)
def test_real_texts(name: str, oracle: Callable[[str], Any], shared_data: Path) -> None:
    whole = real_texts(shared_data)
    assert len(whole) > 1000
    pick = random.Random(3)
    parts = [t[pick.randrange(len(t)) :][: pick.randrange(1, 300)] for t in whole for _ in range(4) if t]
    assert differing(whole + parts, name, oracle(name)) == []


def test_models_are_mapped_as_tiktoken_maps_them() -> None:
    import tiktoken.model as theirs

    assert encodings.MODEL_TO_ENCODING == theirs.MODEL_TO_ENCODING
    assert list(encodings.MODEL_PREFIX_TO_ENCODING.items()) == list(theirs.MODEL_PREFIX_TO_ENCODING.items())
    for model in [*theirs.MODEL_TO_ENCODING, *(p + "x" for p in theirs.MODEL_PREFIX_TO_ENCODING)]:
        assert encodings.encoding_of_model(model) == theirs.encoding_name_for_model(model)
    assert encodings.encoding_of_model("llama-3") is None


def test_a_model_counts_as_its_encoding() -> None:
    sample = ["It's what they'd've SAID… 👍🏽👨‍👩‍👧"]
    for model, encoding in [
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("o3", "o200k_base"),
    ]:
        assert (
            text.count_tokens(sample, model).to_pylist() == text.count_tokens(sample, encoding).to_pylist()
        )
    for harmony in ("gpt-oss-120b", "o200k_harmony"):
        assert (
            text.count_tokens(["<|call|>"], harmony).to_pylist()
            == text.count_tokens(["<|call|>"]).to_pylist()
        )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "text-davinci-003",
            "the encoding of 'text-davinci-003', p50k_base, is not here: known are cl100k_base",
        ),
        ("r50k_base", "unknown encoding 'r50k_base': known are cl100k_base, o200k_base"),
        ("claude", "unknown encoding 'claude': .* OpenAI's models, and the path of a tokenizer.json"),
    ],
)
def test_names_that_stand_for_nothing_here(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text.count_tokens(["a"], name)
