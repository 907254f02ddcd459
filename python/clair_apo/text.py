"""Measures and edit scripts of text pairs, over Arrow columns.

A column is anything with the Arrow PyCapsule methods (pyarrow, polars, pandas 3, arro3 …; Utf8, LargeUtf8,
Utf8View or a dictionary of these; sliced and chunked as it is), a table of one column (a DuckDB relation,
say), or a list of `str` and `None`, as which numpy's and pandas' arrays and the columns of `datasets` are
taken too. Arrow data is read in place, on all cores and without the interpreter's lock; Ctrl-C ends it.
Rows are paired by their place: no index is looked at, and a stream, which can be read but once, is used
up. Results are arro3 arrays, one value per row, which `pyarrow.array`, `polars.Series` and the like take
without a copy. A null on either side gives null.

*Character* is a Unicode code point. *Word* is a maximal run of Unicode word characters (UTS #18 `\\w`),
or one other character that is not white space; a character of script Han, Hiragana, Katakana, Thai,
Lao, Khmer or Myanmar is a word by itself. Case counts, and nothing is normalised.

Distances are exact wherever the table of both texts has at most 2**36 cells (two texts of 262,144
characters, or words, each), and beyond that wherever the band around its diagonal that the distance
needs has: megabytes that are nearly equal. For what is larger *and* more different, the result is the
cost of the best script inside the widest band of 2**36 cells: an upper bound, the same for the same
texts in the same order. So any pair is answered in seconds, in memory linear in its length.

Many pairs are measured together, several in each vector of the processor (`kernel` says which); results
do not depend on it, nor on how rows are chunked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from clair_apo import _core, encodings
from clair_apo.columns import readable as _column

if TYPE_CHECKING:
    from arro3.core import Array, RecordBatch

    class ArrowArray(Protocol):
        def __arrow_c_array__(self, requested_schema: object | None = None) -> Any: ...

    class ArrowStream(Protocol):
        def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any: ...

    Column: TypeAlias = ArrowArray | ArrowStream | Sequence[str | None]

__all__ = [
    "ENCODINGS",
    "Edit",
    "count_tokens",
    "diff",
    "edit_scripts",
    "jaccard",
    "kernel",
    "levenshtein",
    "levenshtein_ratio",
    "minhash",
    "near_duplicates",
    "score",
    "word_script",
    "words",
]

ENCODINGS: tuple[str, ...] = encodings.ENCODINGS
"""Encodings that `count_tokens` knows, by tiktoken's names."""

NEAR_MEMORY = 256 << 20
"""Bytes that `near_duplicates` holds of what grows with the texts before the rest goes to a file."""


class Edit(NamedTuple):
    """One block of an edit script: `a[a_start:a_end]` becomes `b[b_start:b_end]`."""

    op: Literal["equal", "delete", "insert", "replace"]
    a_start: int
    a_end: int
    b_start: int
    b_end: int


def words(text: str) -> list[str]:
    """The words of `text`, in order. On ASCII without control characters that is what
    `re.findall(r"\\w+|[^\\w\\s]", text)` gives."""
    return _core.words(_whole(text, "text"))


def jaccard(a: Column, b: Column) -> Array:
    """Jaccard similarity of the sets of words of each pair.

    Returns: float64, one per row: shared words over all words, 1 when both texts have none.

    Raises: `ValueError` for columns of different length, `TypeError` for one that is not text; both
    name the column.
    """
    return _core.jaccard(_column(a, "a"), _column(b, "b"))


def levenshtein(a: Column, b: Column, unit: Literal["char", "word"] = "char") -> Array:
    """Levenshtein distance of each pair, in characters or in words.

    Returns: uint32, one per row.

    Raises: `ValueError` for columns of different length, text that is not UTF-8 or an unknown unit,
    `TypeError` for a column that is not text; both name the column.
    """
    return _core.levenshtein(_column(a, "a"), _column(b, "b"), unit)


def levenshtein_ratio(a: Column, b: Column) -> Array:
    """Levenshtein distance in characters over the longer text's length.

    Returns: float64 from 0 to 1, one per row; 0 when both texts are empty.

    Raises: as `levenshtein`.
    """
    return _core.levenshtein_ratio(_column(a, "a"), _column(b, "b"))


def score(rejected: Column, chosen: Column) -> RecordBatch:
    """Every measure of each pair, as a table that `pyarrow.table` and `polars.DataFrame` take.

    Returns: one row per pair and these columns, all of them null where either text is:

    - `jaccard` float64, over sets of words
    - `levenshtein` uint32, characters; `levenshtein_ratio` float64, over the longer text
    - `word_edits` uint32, words; `word_edit_ratio` float64, over the longer number of words
    - `chosen_chars`, `rejected_chars`, `chosen_words`, `rejected_words` uint32
    - `length_ratio` float64, chosen over rejected characters, null where rejected is empty
    - `edit_position` fixed_size_list<uint32>[10]: word edits that start in each tenth of the rejected
      text's characters. An insertion starts where the word after it does; one at the very end counts
      in the last tenth, one into an empty text in the first
    - `identical` bool

    Raises: `ValueError` for columns of different length, `TypeError` for one that is not text; both
    name the column.
    """
    return _core.score(_column(rejected, "rejected"), _column(chosen, "chosen"))


def diff(a: str, b: str) -> list[Edit]:
    """The edit script that turns `a` into `b`: blocks in order that cover both texts.

    Offsets are in characters, as Python slices them. The blocks come from a minimal script over words
    (its cost is `levenshtein(…, unit="word")`). Of several minimal scripts it is this one: the common
    words at the beginning are kept, then those at the end; in between, walking back from the end, a
    deletion is preferred to keeping or replacing a word, and that to an insertion. Edits with nothing
    but white space between them are one block; white space that differs between equal words is a
    block of its own. Two blocks that change something always have an equal one between them.

    Raises: `TypeError` if one is not a `str`.
    """
    return [Edit._make(edit) for edit in _core.diff(_whole(a, "a"), _whole(b, "b"))]


def edit_scripts(a: Column, b: Column) -> Array:
    """The edit script of each pair of two columns, as `diff` gives it for one pair.

    Returns: large_list<struct<op: string, a_start: uint32, a_end, b_start, b_end>>, one list per row,
    null where either text is.

    Raises: `ValueError` for columns of different length, `TypeError` for one that is not text; both
    name the column.
    """
    return _core.edit_scripts(_column(a, "a"), _column(b, "b"))


def word_script(a: str, b: str) -> list[Edit]:
    """The minimal script over words that `diff` is made of: one `Edit` of cost 1 per word that is
    deleted, inserted or replaced, with offsets that count words. Kept words are left out.

    Raises: `TypeError` if one is not a `str`.
    """
    return [Edit._make(edit) for edit in _core.word_script(_whole(a, "a"), _whole(b, "b"))]


def count_tokens(column: Column, encoding: str | os.PathLike[str] = "o200k_base") -> Array:
    """Tokens of each text in one of OpenAI's encodings or by a `tokenizer.json`.

    `encoding` is one of `ENCODINGS`, the name of an OpenAI model as tiktoken knows it, or the path of a
    `tokenizer.json` or of a folder that holds one. A path is what has `.json` at its end or a separator
    in it, or is no name that is known.

    OpenAI's: special tokens count as the ordinary text that they are (tiktoken's `encode_ordinary`). A
    file's: as its library counts with `add_special_tokens=False`, so its added tokens are one each where
    they stand in a text, and its truncation and padding are off. Byte-level BPE of the usual patterns
    (GPT-2, Llama 3, Qwen 2, Tekken, o200k, with single digits) is counted by the core. Other files
    are counted by the package `tokenizers`, if it is installed: the same counts, slower.

    Returns: uint32, one per row, null for null.

    Raises: `ValueError` for an unknown encoding or a file that is no tokenizer, `OSError` for one that
    cannot be read, `ImportError` where `tokenizers` is wanted and missing, `TypeError` for a column that
    is not text.
    """
    values = _column(column, "column")
    counter = encodings.counter_of(encoding)
    if isinstance(counter, _core.Tokenizer):
        return _core.count_tokens(values, counter)
    return _core.count_tokens_with(values, counter)


def minhash(column: Column, permutations: int = 256, shingle: int = 5, seed: int = 0) -> Array:
    """MinHash signature of each text. The share of places in which two of them are equal estimates the
    Jaccard similarity of the sets of shingles of the two texts, with a standard deviation of
    sqrt(J (1 - J) / permutations).

    A shingle is a run of `shingle` words, lower-cased; a text of fewer words is one shingle. `clair-apo
    dedup` works with these numbers. Signatures can be compared if they were made with the same
    `shingle`, `seed` and algorithm; fewer permutations are the beginning of more, in steps of 32.

    Algorithm `clair-minhash-1`: each shingle gets one hash of 64 bits under the seed. Its upper half, times
    an odd multiplier modulo 2**32, gives an order of all shingles from the bottom and another from the
    top; places 32 k to 32 k + 15 hold the least products with sixteen multipliers, the sixteen after
    these the complements of the greatest.

    Returns: fixed_size_list<uint32>[permutations], one per row, null for null.

    Raises: `ValueError` for numbers that are not possible, `TypeError` for a column that is not text.
    """
    return _core.minhash(_column(column, "column"), permutations, shingle, seed)


def near_duplicates(
    texts: Column,
    *,
    threshold: float = 0.8,
    shingle: int = 5,
    exact: bool = False,
    keep: Literal["first", "shortest"] = "first",
    seed: int = 0,
) -> RecordBatch:
    """The rows whose text is equal to, or near, that of a row that stays: those `clair-apo dedup` drops.

    Texts are equal but for case and white space, or near if the Jaccard similarity of their sets of
    shingles (runs of `shingle` words, lower-cased; a text of fewer words is one) is at least `threshold`.
    With `exact` only equal texts go. Rows are visited in their order, or with `keep="shortest"` from the
    fewest characters to the most (of as many in the order of the texts, and then the same texts stay
    whatever the order of the rows). A row goes because of one that stays, never through a third one that
    goes itself. A null and a text without words stay, and nothing goes because of them.

    Candidates come from MinHash in bands under `seed`, which find pairs at the threshold with a probability
    of at least 0.99, and nearer ones with a higher one; where more than some four thousand different
    texts resemble each other not all of them are looked at. Each candidate is verified on the sets
    themselves, so every row here is near its `kept_row`. Memory: 50 to 80 bytes a row, and 256 MiB
    for shingles and bands, of which the rest goes to a temporary file (folder `TMPDIR`).

    Returns: one row for each that goes, in the order of the rows: `row` and `kept_row` uint32, counted
    from 0 over all chunks; `jaccard` float64; `reason` string, `exact` or `near`.

    Raises: `ValueError` for an impossible setting (a threshold is from 0.1 to 1) or 2**32 - 1 rows or more,
    `TypeError` for a column that is not text, `OSError` where the temporary file cannot be written.
    """
    if keep not in ("first", "shortest"):
        raise ValueError(f"unknown rule {keep!r}: known are first, shortest")
    if shingle < 1 or not 0 <= seed < 1 << 64:
        raise ValueError(f"shingle {shingle}, seed {seed}: at least one word, and from 0 to 2**64 - 1")
    return _core.near_duplicates(
        _column(texts, "texts"), threshold, shingle, exact, keep, seed, NEAR_MEMORY
    )


def kernel() -> str:
    """The vector instructions in use: `avx512vbmi2`, `avx512`, `avx2`, `neon`, or `portable` for none.

    The fastest that the machine has, unless the environment variable `CLAIR_APO_KERNEL` names another
    one. It is read once. All give the same results.

    Raises: `ValueError` where the variable names one that the machine does not have; so does every
    function that measures columns.
    """
    return _core.kernel()


def _whole(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"`{name}` is of type {type(text).__name__}: expected str")
    return text
