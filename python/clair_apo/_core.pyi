import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, final

from arro3.core import Array, RecordBatch, Schema

_Op: TypeAlias = Literal["equal", "delete", "insert", "replace"]
_Edit: TypeAlias = tuple[_Op, int, int, int, int]

_Lost: TypeAlias = tuple[int, str, str | None]

# Columns are any object with `__arrow_c_array__` or `__arrow_c_stream__`; `clair_apo.text` documents
# the functions.
ENCODINGS: list[str]

@final
class Tokenizer: ...

def words(text: str) -> list[str]: ...
def jaccard(a: Any, b: Any) -> Array: ...
def levenshtein(a: Any, b: Any, unit: str = "char") -> Array: ...
def levenshtein_ratio(a: Any, b: Any) -> Array: ...
def score(rejected: Any, chosen: Any) -> RecordBatch: ...
def tokenizer_of_encoding(name: str) -> Tokenizer: ...
def tokenizer_of_json(file: bytes) -> tuple[Tokenizer | None, str]: ...
def count_tokens(column: Any, tokenizer: Tokenizer) -> Array: ...
def count_tokens_with(column: Any, counter: Callable[[list[str]], list[int]]) -> Array: ...
def diff(a: str, b: str) -> list[_Edit]: ...
def word_script(a: str, b: str) -> list[_Edit]: ...
def edit_scripts(a: Any, b: Any) -> Array: ...
def kernel() -> str: ...

# Attention of one head in float32, on the thread that calls: C-contiguous arrays, `query`, `out`, `of_out`
# and `of_query` [rows, heads, size], `key` and `value` [rows, key heads, size], `lse` [heads, rows],
# `of_key` and `of_value` [heads, rows, size]. The rows of `own` (first, and behind the last) see those of
# `prefix`, and of `own` those up to themselves. Gradients of keys and values are put into the rows of `own`
# and added to those of `prefix`. Raise ValueError for other shapes, NotImplementedError where
# `attention_kernel`, the instructions that it runs on, is None.
_Span: TypeAlias = tuple[int, int]

def attention_kernel() -> str | None: ...
def attention_forward(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    head: int,
    prefix: _Span,
    own: _Span,
    scale: float,
) -> None: ...
def attention_backward(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    of_out: Any,
    of_query: Any,
    of_key: Any,
    of_value: Any,
    head: int,
    prefix: _Span,
    own: _Span,
    scale: float,
) -> None: ...

class NgramIndex:
    """Different n-grams of words, in lower case, of the texts of a benchmark."""

    def __init__(self, texts: Any, n: int) -> None: ...
    @property
    def grams(self) -> int: ...
    def items(self) -> Array: ...
    def lengths(self) -> Array: ...
    def count(self, columns: list[Any]) -> Array: ...
    def set_aside(self, items: int, rows: int) -> int: ...
    def phrases(self, most: int) -> RecordBatch: ...
    def matches(self, texts: Any, share: float) -> RecordBatch: ...

def minhash(column: Any, permutations: int, shingle: int, seed: int) -> Array: ...
def near_duplicates(
    texts: Any, threshold: float, shingle: int, exact: bool, keep: str, seed: int, memory: int
) -> RecordBatch: ...

class Dedup:
    def __init__(
        self, threshold: float | None, shingle: int, keep: str, seed: int, memory: int
    ) -> None: ...
    @property
    def bands(self) -> tuple[int, int, float] | None: ...
    def add(self, rows: Any, texts: Any, keys: Any = None, rest: list[Any] = ...) -> None: ...
    def finish(self, rows: int) -> Outcome: ...

class Outcome:
    def stays(self, first: int, count: int) -> Array: ...
    def involved(self, first: int, count: int) -> Array: ...
    def gone(self, first: int, count: int) -> RecordBatch: ...
    def counts(self) -> list[tuple[str, int]]: ...

class ParquetFile:
    """A Parquet file by its footer.

    Raises OSError where it cannot be opened, ValueError where it is no Parquet file."""

    def __init__(self, path: str | os.PathLike[str]) -> None: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def leaves(self) -> list[str]: ...
    @property
    def schema(self) -> Schema: ...
    def batches(
        self, columns: list[str] | None = None, rows: int = 256, bytes: int = 8388608
    ) -> Iterator[RecordBatch | _Lost]:
        """Batches bounded in rows and bytes, or `(rows, reason, column)` for rows that are lost."""

    def pairs(
        self,
        chosen: str,
        rejected: str,
        *,
        transcript: bool,
        flags: str | None = None,
        method: str | None = None,
        usage: str | None = None,
        rows: int = 1024,
        bytes: int = 2097152,
    ) -> ParquetPairs | None:
        """The pairs in two columns; None where a column is of a type that is not read this way."""

class ParquetPairs:
    def step(self, tally: Tally) -> tuple[int, list[tuple[int, RecordBatch | _Lost]]] | None:
        """Adds the next pairs to `tally`. Returns how many rows that were and those out of the ordinary,
        which are not added, each with its place among them; None at the end."""

class ParquetWriter:
    """Writes a Parquet file: zstd, page index, row groups of about 16 MiB.

    `schema` and `batch` are anything with the Arrow PyCapsule methods. Without `finish` what is written is
    no Parquet file. Raises OSError where the disk does not take it, ValueError for types that Parquet does
    not know."""

    def __init__(self, path: str | os.PathLike[str], schema: Any) -> None: ...
    def write(self, batch: Any) -> None: ...
    def finish(self) -> None: ...

MEASURES: list[tuple[str, bool]]
"""What a tally has distributions of, and whether it counts something."""

class Tally:
    """Pairs summed up. Up to `exact` pairs every figure is exact, beyond within 0.1% of rank, in memory
    that grows no more."""

    def __init__(self, exact: int = 1048576) -> None: ...
    def add(self, rejected: Any, chosen: Any) -> None:
        """Measures a column of pairs and adds them; a pair with a null is left out."""

    def add_texts(self, rejected: list[str], chosen: list[str]) -> None:
        """As `add`, for texts that are Python's."""

    @property
    def pairs(self) -> int: ...
    @property
    def chosen_longer(self) -> int: ...
    @property
    def identical(self) -> int: ...
    @property
    def near_identical(self) -> int: ...
    @property
    def edit_position(self) -> list[int]: ...
    @property
    def flags(self) -> list[tuple[str, int]]: ...
    @property
    def methods(self) -> list[tuple[str, int]]: ...
    @property
    def usage(self) -> tuple[float | None, float | None, float | None]:
        """Sums of `tokens_in`, `tokens_out`, `cost_usd`."""

    def distribution(self, name: str) -> Distribution: ...

class Distribution:
    """All values of a measure, in order."""

    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float:
        """Over n."""

    @property
    def ends(self) -> tuple[float, float] | None: ...
    def quantile(self, q: float) -> float | None:
        """As numpy's default; beyond what is kept the nearest one kept."""

    def below(self, bound: float) -> int:
        """How many values are less than `bound`."""
