"""The measures of `clair_apo.text` against plain Python, rapidfuzz and tiktoken."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
import regex
from arro3.core import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

import clair_apo.text as text

# The rule of words, in another engine: a script's characters stand alone, whatever else they are.
UNSPACED = "".join(
    rf"\p{{Script={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
RUN = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}"
WORDS = regex.compile(rf"(?V1)[{UNSPACED}]|[[{RUN}]--[{UNSPACED}]]+|[^{RUN}\p{{White_Space}}]")

SNIPPETS = ["the", "a", "cat", "sat", "x_1", " ", "  ", "\n", "\n\n", "**", "-", "'s", "é", "e\u0301"]
SNIPPETS += ["漢字", "かな", "ไทย", "한국어", "👍🏽", "👨‍👩‍👧", "\u00a0", "\u3000", "…", "١٢", "𝒳"]
prose = st.lists(st.sampled_from(SNIPPETS), max_size=60).map(" ".join)
dense = st.lists(st.sampled_from(SNIPPETS), max_size=60).map("".join)
anything = st.text(st.characters(codec="utf-8", exclude_categories=["Cn", "Co"]), max_size=80)
texts = prose | dense | anything


def related(text: str) -> st.SearchStrategy[str]:
    """Texts that share much with `text`: a piece of it is replaced."""
    return st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), prose).map(
        lambda cut: text[: min(cut[:2])] + cut[2] + text[max(cut[:2]) :]
    )


pairs = st.tuples(texts, texts) | texts.flatmap(lambda a: st.tuples(st.just(a), related(a)))


def one(column: Array) -> float | int | None:
    (value,) = column.to_pylist()
    return value


# --- words -----------------------------------------------------------------------------------------


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("\t\n\r")))
def test_words_of_ascii(sample: str) -> None:
    assert text.words(sample) == re.findall(r"\w+|[^\w\s]", sample)


@given(prose | dense)
def test_words_of_unicode(sample: str) -> None:
    assert text.words(sample) == WORDS.findall(sample)


def test_words_of_every_script() -> None:
    for start in range(0, 0x30000, 0x400):
        points = (chr(c) for c in range(start, start + 0x400) if not 0xD800 <= c < 0xE000)
        # The engines' versions of Unicode differ; what Python knows, both know.
        known = [c for c in points if unicodedata.category(c) != "Cn"]
        sample = "a".join(known) + " ".join(known)
        assert text.words(sample) == WORDS.findall(sample), hex(start)


def test_words_by_hand() -> None:
    assert text.words("It's a_b 3.5!") == ["It", "'", "s", "a_b", "3", ".", "5", "!"]
    assert text.words("漢字かな abc 한국어") == ["漢", "字", "か", "な", "abc", "한국어"]
    assert text.words("cafe\u0301 👍🏽") == ["cafe\u0301", "👍", "🏽"]
    assert text.words("") == []
    with pytest.raises(TypeError, match="`text` is of type int"):
        text.words(3)  # type: ignore[arg-type]


# --- distances -------------------------------------------------------------------------------------


@given(pairs)
def test_measures_equal_their_definitions(pair: tuple[str, str]) -> None:
    a, b = pair
    x, y = text.words(a), text.words(b)
    distance, word_edits = Levenshtein.distance(a, b), Levenshtein.distance(x, y)
    jaccard = len({*x} & {*y}) / len({*x} | {*y}) if x or y else 1.0
    ratio = distance / max(len(a), len(b)) if a or b else 0.0
    assert one(text.levenshtein([a], [b])) == distance
    assert one(text.levenshtein([a], [b], unit="word")) == word_edits
    assert one(text.jaccard([a], [b])) == jaccard
    assert one(text.levenshtein_ratio([a], [b])) == ratio
    scores = text.score([a], [b])
    position = scores["edit_position"].to_pylist()[0]
    assert sum(position) == word_edits
    assert {
        name: scores[name].to_pylist()[0] for name in scores.schema.names if name != "edit_position"
    } == {
        "jaccard": jaccard,
        "levenshtein": distance,
        "levenshtein_ratio": ratio,
        "word_edits": word_edits,
        "word_edit_ratio": word_edits / max(len(x), len(y)) if x or y else 0.0,
        "chosen_chars": len(b),
        "rejected_chars": len(a),
        "chosen_words": len(y),
        "rejected_words": len(x),
        "length_ratio": len(b) / len(a) if a else None,
        "identical": a == b,
    }


@given(pairs, texts)
def test_symmetry_and_triangle(pair: tuple[str, str], c: str) -> None:
    a, b = pair
    for unit in ("char", "word"):
        ab, ba, ac, cb = text.levenshtein([a, b, a, c], [b, a, c, b], unit=unit).to_pylist()
        assert ab == ba <= ac + cb
    assert text.jaccard([a], [b]).to_pylist() == text.jaccard([b], [a]).to_pylist()


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_long_texts_with_few_edits(seed: int, edits: int) -> None:
    random = Random(seed)
    a = "".join(random.choices("abcd é漢👍", k=3000))
    b = list(a)
    for _ in range(edits):
        at = random.randrange(len(b))
        b[at : at + random.randrange(3)] = random.choices("abc d", k=random.randrange(3))
    other = "".join(b)
    assert one(text.levenshtein([a], [other])) == Levenshtein.distance(a, other)
    x, y = text.words(a), text.words(other)
    assert one(text.levenshtein([a], [other], "word")) == Levenshtein.distance(x, y)


def test_score_by_hand() -> None:
    table = text.score(["", "aaaa bbbb c", "same", None, "x"], ["a b", "x bbbb y z", "same", "a", None])
    assert table.schema.names == [
        "jaccard",
        "levenshtein",
        "levenshtein_ratio",
        "word_edits",
        "word_edit_ratio",
        "chosen_chars",
        "rejected_chars",
        "chosen_words",
        "rejected_words",
        "length_ratio",
        "edit_position",
        "identical",
    ]
    rows = [
        dict(zip(table.schema.names, row, strict=True))
        for row in zip(*(table[name].to_pylist() for name in table.schema.names), strict=True)
    ]
    assert rows[0]["edit_position"] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert rows[1]["edit_position"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert rows[0]["length_ratio"] is None
    assert rows[2]["identical"] is True
    assert set(rows[3].values()) == set(rows[4].values()) == {None}


# --- scripts ---------------------------------------------------------------------------------------


def replay(a: str, b: str, edits: list[text.Edit]) -> str:
    return "".join(a[e.a_start : e.a_end] if e.op == "equal" else b[e.b_start : e.b_end] for e in edits)


@given(pairs)
def test_diff_gives_b_and_reads_well(pair: tuple[str, str]) -> None:
    a, b = pair
    edits = text.diff(a, b)
    assert replay(a, b, edits) == b
    ends = [(0, 0), *((e.a_end, e.b_end) for e in edits)]
    assert ends[-1] == (len(a), len(b))
    for edit, end in zip(edits, ends, strict=False):
        old, new = a[edit.a_start : edit.a_end], b[edit.b_start : edit.b_end]
        assert (edit.a_start, edit.b_start) == end
        assert (
            edit.op
            == {
                (False, True): "insert",
                (True, False): "delete",
                (True, True): "equal" if old == new else "replace",
            }[bool(old), bool(new)]
        )
    for before, after in itertools.pairwise(edits):
        assert (before.op == "equal") != (after.op == "equal")
    # An equal block between two changes holds a word: white space alone does not part them.
    for edit in edits[1:-1]:
        assert edit.op != "equal" or a[edit.a_start : edit.a_end].strip()


@given(pairs)
def test_the_script_is_minimal_and_gives_b(pair: tuple[str, str]) -> None:
    a, b = pair
    x, y = text.words(a), text.words(b)
    units = text.word_script(a, b)
    assert len(units) == Levenshtein.distance(x, y)
    out: list[str] = []
    at = 0
    for unit in units:
        out += x[at : unit.a_start]
        assert len(out) == unit.b_start
        out += y[unit.b_start : unit.b_end]
        at = unit.a_end
        assert (unit.a_end - unit.a_start, unit.b_end - unit.b_start) == {
            "delete": (1, 0),
            "insert": (0, 1),
            "replace": (1, 1),
        }[unit.op]
    assert out + x[at:] == y


def shown(a: str, b: str) -> list[tuple[str, str, str]]:
    return [(e.op, a[e.a_start : e.a_end], b[e.b_start : e.b_end]) for e in text.diff(a, b)]


def test_diff_by_hand() -> None:
    assert shown("", "") == []
    assert shown("same", "same") == [("equal", "same", "same")]
    assert shown("one two three four", "one 2 3 four") == [
        ("equal", "one ", "one "),
        ("replace", "two three", "2 3"),
        ("equal", " four", " four"),
    ]
    assert shown("a b", "a new b") == [
        ("equal", "a ", "a "),
        ("insert", "", "new "),
        ("equal", "b", "b"),
    ]
    assert shown("a\nb", "a b") == [("equal", "a", "a"), ("replace", "\n", " "), ("equal", "b", "b")]
    assert shown("👍 漢字", "👍 漢子")[1] == ("replace", "字", "子")
    with pytest.raises(TypeError, match="`b` is of type NoneType"):
        text.diff("a", None)  # type: ignore[arg-type]


def test_ties_keep_the_ends_and_insert_early() -> None:
    assert text.word_script("x", "x x") == [("insert", 1, 1, 1, 2)]
    assert text.word_script("a x b", "c x x d") == [
        ("insert", 0, 0, 0, 1),
        ("replace", 0, 1, 1, 2),
        ("replace", 2, 3, 3, 4),
    ]
    assert text.word_script("a x x b", "c x d") == [
        ("replace", 0, 1, 0, 1),
        ("replace", 2, 3, 2, 3),
        ("delete", 3, 4, 3, 3),
    ]


def test_real_pairs(shared_data: Path) -> None:
    for name in ("pairs_revision", "pairs_stronger_preferred"):
        table = pq.read_table(shared_data / f"{name}.parquet", columns=["rejected", "chosen"])
        sides = [
            [v if isinstance(v, str) else v[-1]["content"] for v in table[side].to_pylist()]
            for side in ("rejected", "chosen")
        ]
        scores = text.score(*sides)
        distances = scores["levenshtein"].to_pylist()
        word_edits = scores["word_edits"].to_pylist()
        for i, (a, b) in enumerate(zip(*sides, strict=True)):
            assert text.words(a) == WORDS.findall(a)
            assert distances[i] == Levenshtein.distance(a, b)
            assert word_edits[i] == Levenshtein.distance(text.words(a), text.words(b))
            assert replay(a, b, text.diff(a, b)) == b


# --- tokens ----------------------------------------------------------------------------------------

COUNTED = [
    "Hello, world!",
    "Hello, world! <|endoftext|> 漢字 naïve   \n\n1234567",
    "",
    "def f(x):\n    return x**2  # squared\n",
    "It's what they'd've SAID… 👍🏽👨‍👩‍👧",
    "الْعَرَبِيَّة ภาษาไทย 한국어",
    " " * 37 + "\t\r\n x",
]


def test_token_counts_that_tiktoken_gave() -> None:
    assert text.count_tokens(COUNTED, "cl100k_base").to_pylist() == [4, 20, 0, 13, 27, 26, 3]
    assert text.count_tokens(COUNTED).to_pylist() == [4, 20, 0, 13, 18, 12, 3]
    assert text.count_tokens([None, "a"]).to_pylist() == [None, 1]
    assert text.ENCODINGS == ("cl100k_base", "o200k_base")
    with pytest.raises(ValueError, match="unknown encoding 'gpt2': known are cl100k_base, o200k"):
        text.count_tokens(["a"], "gpt2")


@pytest.mark.parametrize("encoding", text.ENCODINGS)
def test_token_counts_equal_tiktoken(
    encoding: str, tiktoken_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_folder))
    oracle = tiktoken.get_encoding(encoding)

    @settings(deadline=None)
    @given(st.lists(texts, min_size=1, max_size=5))
    def check(samples: list[str]) -> None:
        expected = [len(oracle.encode_ordinary(sample)) for sample in samples]
        assert text.count_tokens(samples, encoding).to_pylist() == expected

    check()


# --- megabytes -------------------------------------------------------------------------------------


def measured(code: str) -> dict[str, float]:
    """Seconds and the growth of memory of `code`, which sets `result`, in a process of its own."""
    program = f"""
import json, random, resource, time
import clair_apo.text as text

def prose(seed, size):
    choose = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz" + str(seed)
    words = ["".join(choose.choices(letters, k=choose.randint(2, 9))) for _ in range(4000)]
    return " ".join(choose.choices(words, k=size // 6))[:size]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
{textwrap.dedent(code)}
print(json.dumps({{"seconds": seconds, "mib": peak() - before, "result": result}}))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def test_five_megabytes_nearly_equal_are_exact() -> None:
    told = measured(
        """
        a = prose(1, 5_000_000)
        b = a[:1_000_000] + "XYZ" + a[1_000_000:3_000_000] + a[3_000_007:] + " The End"
        text.score(["a"], ["b"])
        before, start = peak(), time.monotonic()
        table = text.score([a], [b])
        result = table["levenshtein"].to_pylist()[0]
        assert len(text.diff(a, b)) < 12
        seconds = time.monotonic() - start
        """
    )
    assert told["result"] == 3 + 7 + 8
    assert told["seconds"] < 60
    assert told["mib"] < 600
