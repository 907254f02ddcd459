"""The peers of `text.py`: the environment they are installed in, and the best use of each that we know.

Each function gives `{name: (work, number of rows)}`. A peer that does not import is left out, with its
reason in `MISSING`. Peers that are slow take fewer rows.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Work = Callable[[], Any]
Entries = dict[str, tuple[Work, int]]

REQUIREMENTS = [
    "bpe-openai",
    "daft",
    "datasketch",
    "levenshtein",
    "polars-distance",
    "polars-ds",
    "rensa",
    "rs_bpe",
    "toktok-rs",
]
MISSING: dict[str, str] = {}
WORDS = re.compile(r"\w+|[^\w\s]")  # quicker than the same in `regex`


def enter(folder: Path) -> None:
    """Goes on in the peers' own environment, which is made first; it sees the packages of this one too.

    Raises: `SystemExit` if it cannot be made.
    """
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    python, done = folder / "bin" / "python", folder / "requirements.txt"
    here = sysconfig.get_path("purelib")
    wanted = "\n".join([sys.version, here, *REQUIREMENTS])
    if not done.is_file() or done.read_text("utf-8") != wanted:
        print(f"installing the peers in {folder} …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / ".gitignore").write_text("*\n")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for site in folder.glob("lib/python*/site-packages"):
            (site / "packages_of_the_project.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # One by one: what cannot be installed here is missing, and the others are there all the same.
        for name in REQUIREMENTS:
            subprocess.run([*install, name], stdout=sys.stderr, check=False)
        done.write_text(wanted, "utf-8")
    one = dict.fromkeys(("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS"), "1")
    os.execve(python, [str(python), *sys.argv], {**os.environ, **one, "DO_NOT_TRACK": "1"})


def need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        MISSING[name] = f"{type(error).__name__}: {error}"
        return None


# --- distances of characters -----------------------------------------------------------------------


def characters(a: list[str], b: list[str]) -> Entries:
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cpdist

    pairs, rows = list(zip(a, b, strict=True)), len(a)
    entries: Entries = {
        "rapidfuzz distance": (lambda: [Levenshtein.distance(x, y) for x, y in pairs], rows),
        "rapidfuzz cpdist": (lambda: cpdist(a, b, scorer=Levenshtein.distance, workers=1).tolist(), rows),
    }
    if other := need("Levenshtein"):
        entries["python-Levenshtein"] = (lambda: [other.distance(x, y) for x, y in pairs], rows)
    import polars as pl

    frame = pl.DataFrame({"a": a, "b": b})
    if need("polars_ds"):
        import polars_ds

        expression = polars_ds.str_leven("a", "b").alias("a")
        entries["polars-ds"] = (lambda: frame.select(expression)["a"].to_list(), rows)
    if need("polars_distance"):
        import polars_distance

        distance = polars_distance.col("a").dist_str.levenshtein("b")
        entries["polars-distance"] = (lambda: frame.select(distance)["a"].to_list(), rows)
    return entries


# --- words -----------------------------------------------------------------------------------------


def scripts(pairs: list[tuple[str, str]]) -> Entries:
    from rapidfuzz.distance import Levenshtein

    def dense(a: str, b: str) -> Any:
        """Words as characters: rapidfuzz is at its best on str, but the mapping has its price."""
        x, y = WORDS.findall(a), WORDS.findall(b)
        number = {word: chr(i) for i, word in enumerate({*x, *y})}.__getitem__
        return Levenshtein.opcodes("".join(map(number, x)), "".join(map(number, y)))

    return {
        "re + rapidfuzz opcodes": (
            lambda: [Levenshtein.opcodes(WORDS.findall(a), WORDS.findall(b)) for a, b in pairs],
            len(pairs),
        ),
        "re + rapidfuzz opcodes, dense ids": (lambda: [dense(a, b) for a, b in pairs], len(pairs)),
    }


def jaccards(a: list[str], b: list[str]) -> Entries:
    import polars as pl

    pairs, rows = list(zip(a, b, strict=True)), len(a)

    def sets(a: str, b: str) -> float:
        x, y = {*WORDS.findall(a)}, {*WORDS.findall(b)}
        shared = len(x & y)
        return shared / (len(x) + len(y) - shared) if x or y else 1.0

    frame = pl.DataFrame({"a": a, "b": b})

    def of_lists(words: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
        x, y = words(pl.col("a")), words(pl.col("b"))
        return x.list.set_intersection(y).list.len() / x.list.set_union(y).list.len()

    same = of_lists(lambda text: text.str.extract_all(WORDS.pattern))
    split = of_lists(lambda text: text.str.split(" "))
    return {
        "re + Python sets": (lambda: [sets(a, b) for a, b in pairs], rows),
        "polars, the same words": (lambda: frame.select(same)["a"].to_list(), rows),
        "polars, split at spaces (other words)": (lambda: frame.select(split)["a"].to_list(), rows),
    }


def scores(pairs: list[tuple[str, str]]) -> Entries:
    """Every measure of `score` but the places of the edits, which need the words' offsets."""
    from rapidfuzz.distance import Levenshtein

    def score(a: str, b: str, hint: bool) -> tuple[float, ...]:
        x, y = WORDS.findall(a), WORDS.findall(b)
        words, others = {*x}, {*y}
        shared = len(words & others)
        edits = Levenshtein.distance(x, y)
        longest, most = max(len(a), len(b)), max(len(x), len(y))
        if hint and most:
            # What the words say about the characters lets rapidfuzz begin with a narrow band.
            distance = Levenshtein.distance(a, b, score_hint=longest * edits // most)
        else:
            distance = Levenshtein.distance(a, b)
        return (
            shared / (len(words) + len(others) - shared) if x or y else 1.0,
            distance,
            distance / longest if longest else 0.0,
            edits,
            edits / most if most else 0.0,
            len(b),
            len(a),
            len(y),
            len(x),
            len(b) / len(a) if a else 0.0,
            a == b,
        )

    return {
        "re, sets, rapidfuzz": (lambda: [score(a, b, False) for a, b in pairs], len(pairs)),
        "re, sets, rapidfuzz with a hint": (lambda: [score(a, b, True) for a, b in pairs], len(pairs)),
    }


# --- near-duplicates -------------------------------------------------------------------------------

PERMUTATIONS, BANDS, THRESHOLD = 128, 16, 0.8


def runs(words: list[str]) -> list[tuple[str, ...]]:
    """Five words each; a text with fewer is one."""
    if len(words) < 5:
        return [tuple(words)]
    return list(zip(words, words[1:], words[2:], words[3:], words[4:], strict=False))


def shingles(text: str) -> list[str]:
    return list(map(" ".join, runs(WORDS.findall(text.lower()))))


def shingles_at_spaces(text: str) -> list[str]:
    """Of other words than ours; splitting at white space is twice as quick."""
    return list(map(" ".join, runs(text.lower().split())))


def numbered_shingles(text: str) -> list[int]:
    return [hash(run) & 0xFFFF_FFFF_FFFF_FFFF for run in runs(WORDS.findall(text.lower()))]


def rensa_deduplicator(texts: Sequence[str]) -> list[int]:
    """The rows that rensa's deduplicator does not add."""
    rensa = importlib.import_module("rensa")
    keep = rensa.RMinHashDeduplicator(
        threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS
    )
    gone = []
    for row, text in enumerate(texts):
        sketch = rensa.RMinHash(num_perm=PERMUTATIONS, seed=42)
        sketch.update(shingles(text))
        if not keep.add(str(row), sketch):
            gone.append(row)
    return gone


def rensa_flags(texts: Sequence[str], cut: Callable[[str], list[str]]) -> list[int]:
    """The rows that share a band with another one, by rensa's quickest way; none of them stays."""
    rensa = importlib.import_module("rensa")
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(
        [cut(text) for text in texts], num_perm=PERMUTATIONS, seed=42
    )
    index = rensa.RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS)
    flags = index.query_duplicate_flags_matrix_one_shot(matrix)
    return [row for row, flag in enumerate(flags) if flag]


def datasketch_lsh(texts: Sequence[str], *, numbers: bool) -> list[int]:
    """Not with the bands that it takes for this threshold by itself (9 of 13): these miss a fifth."""
    datasketch = importlib.import_module("datasketch")
    index = datasketch.MinHashLSH(
        num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS), threshold=THRESHOLD
    )
    given = {"hashfunc": lambda number: number & 0xFFFF_FFFF} if numbers else {}
    gone = []
    for row, text in enumerate(texts):
        sketch = datasketch.MinHash(num_perm=PERMUTATIONS, **given)
        sketch.update_batch(
            numbered_shingles(text) if numbers else [shingle.encode() for shingle in shingles(text)]
        )
        if index.query(sketch):
            gone.append(row)
        else:
            index.insert(row, sketch)
    return gone


def near_duplicates(texts: list[str]) -> dict[str, tuple[Work, int, bool | None]]:
    """Also whether a row that stays is left for each that goes; none where there are only sketches."""
    entries: dict[str, tuple[Work, int, bool | None]] = {}
    rows = len(texts)
    if need("rensa"):
        entries["rensa, flags"] = (lambda: rensa_flags(texts, shingles), rows, False)
        entries["rensa, deduplicator"] = (lambda: rensa_deduplicator(texts), rows, True)
        entries["rensa at spaces, flags"] = (lambda: rensa_flags(texts, shingles_at_spaces), rows, False)
    if daft := need("daft"):
        frame = daft.from_pydict({"text": texts}).collect()
        sketch = daft.col("text").minhash(num_hashes=PERMUTATIONS, ngram_size=5, hash_function="xxhash")
        entries["Daft, sketches only"] = (
            lambda: frame.with_column("sketch", sketch).collect(),
            rows,
            None,
        )
    if need("datasketch"):
        few = texts[: max(1, rows // 5)]
        entries["datasketch"] = (lambda: datasketch_lsh(few, numbers=False), len(few), True)
        entries["datasketch, hash() for SHA-1"] = (
            lambda: datasketch_lsh(few, numbers=True),
            len(few),
            True,
        )
    return entries


# --- tokens ----------------------------------------------------------------------------------------


def vocabularies(folder: Path) -> bool:
    """Fills tiktoken's cache from the vocabularies that the crate bpe-openai carries."""
    sources = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry" / "src"
    for name in ("cl100k_base", "o200k_base"):
        found = sorted(sources.glob(f"*/bpe-openai-*/data/{name}.tiktoken.gz"))
        if not found:
            return False
        url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
        key = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
        (folder / key).write_bytes(gzip.decompress(found[-1].read_bytes()))
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    return True


def tokens(texts: list[str], encoding: str) -> Entries:
    entries: Entries = {}
    if tiktoken := need("tiktoken"):
        try:
            ordinary = tiktoken.get_encoding(encoding).encode_ordinary
        except Exception as error:
            MISSING["tiktoken"] = f"{type(error).__name__}: {error}"
        else:
            entries["tiktoken"] = (lambda: [len(ordinary(text)) for text in texts], len(texts))
    if other := need("bpe_openai"):
        encode = other.get_encoding(encoding).encode_ordinary
        entries["bpe-openai"] = (lambda: [len(encode(text)) for text in texts], len(texts))
    if need("rs_bpe"):
        count = getattr(importlib.import_module("rs_bpe.bpe").openai, encoding)().count
        entries["rs_bpe"] = (lambda: [count(text) for text in texts], len(texts))
    if toktok := need("toktok"):
        entries["toktok, its cache warm"] = (lambda: list(toktok.batch_count(texts, encoding)), len(texts))
    return entries
