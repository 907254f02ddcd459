"""The polars namespace: every measure, in every context in which polars evaluates an expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clair_apo.polars
import clair_apo.text as text

A = ["kitten sat", None, "", "漢字 and 👍", "the same", "one two three"]
B = ["sitting sat", "b", "new", "漢子 and 👍🏽", "the same", None]
GROUPS = [1, 2, 2, 1, 2, 3]
FRAME = pl.DataFrame({"group": GROUPS, "rejected": A, "chosen": B, "number": range(6)})

chosen = pl.col("chosen")
clair = pl.col("rejected").clair

MEASURES: dict[str, tuple[pl.Expr, Callable[[Any, Any], Any]]] = {
    "characters": (clair.levenshtein("chosen"), text.levenshtein),
    "words": (clair.levenshtein(chosen, unit="word"), lambda a, b: text.levenshtein(a, b, "word")),
    "word_edits": (clair.word_edits(chosen), lambda a, b: text.levenshtein(a, b, "word")),
    "levenshtein_ratio": (clair.levenshtein_ratio(chosen), text.levenshtein_ratio),
    "jaccard": (clair.jaccard("chosen"), text.jaccard),
    "word_edit_ratio": (clair.word_edit_ratio(chosen), lambda a, b: text.score(a, b)["word_edit_ratio"]),
    "length_ratio": (clair.length_ratio(chosen), lambda a, b: text.score(a, b)["length_ratio"]),
    "edit_position": (clair.edit_position("chosen"), lambda a, b: text.score(a, b)["edit_position"]),
}
EXPRESSIONS = {name: expression.alias(name) for name, (expression, _) in MEASURES.items()}
EXPECTED = {name: oracle(A, B).to_pylist() for name, (_, oracle) in MEASURES.items()}


def test_every_measure_of_score_is_there() -> None:
    """So that a measure that is added to the core is added here."""
    names = text.score(A, B).schema.names
    assert names == [field.name for field in clair_apo.polars.SCORE.fields]
    assert {n for n in names if n.endswith("ratio") or n in ("jaccard", "word_edits")} <= set(MEASURES)


CONTEXTS: dict[str, Callable[[], pl.DataFrame]] = {
    "select": lambda: FRAME.select(**EXPRESSIONS),
    "with_columns": lambda: FRAME.with_columns(**EXPRESSIONS),
    "lazy": lambda: FRAME.lazy().select(**EXPRESSIONS).collect(),
    "streaming": lambda: FRAME.lazy().select(**EXPRESSIONS).collect(engine="streaming"),
    "chunks": lambda: pl.concat([FRAME[:1], FRAME[1:1], FRAME[1:]], rechunk=False).select(**EXPRESSIONS),
    "slice": lambda: pl.concat([FRAME[3:], FRAME, FRAME[:2]]).slice(3, 6).select(**EXPRESSIONS),
    "group_by": lambda: (
        FRAME.with_row_index()
        .group_by("group")
        .agg(pl.col("index"), **EXPRESSIONS)
        .explode("index", *MEASURES)
        .sort("index")
    ),
    "lazy group_by": lambda: (
        FRAME.lazy()
        .with_row_index()
        .group_by("group")
        .agg(pl.col("index"), **EXPRESSIONS)
        .explode("index", *MEASURES)
        .sort("index")
        .collect(engine="streaming")
    ),
    "over": lambda: FRAME.select(**{k: v.over("group") for k, v in EXPRESSIONS.items()}),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_measure_in_every_context(context: str) -> None:
    result = CONTEXTS[context]()
    for name, expected in EXPECTED.items():
        assert result[name].to_list() == expected, name


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_score_is_a_struct(engine: Any) -> None:
    lazy = FRAME.lazy().select(clair.score(chosen).alias("score"))
    assert lazy.collect_schema() == {"score": clair_apo.polars.SCORE}
    result = lazy.collect(engine=engine)
    assert result.schema == {"score": clair_apo.polars.SCORE}
    assert result.unnest("score").equals(pl.DataFrame(text.score(A, B)))
    distances = FRAME.lazy().select(clair.score("chosen").struct.field("levenshtein"))
    assert distances.collect(engine=engine)["levenshtein"].to_list() == EXPECTED["characters"]


def test_groups_can_be_aggregated() -> None:
    result = FRAME.group_by("group").agg(
        mean=clair.levenshtein(chosen).mean(),
        most=clair.score(chosen).struct.field("word_edits").max(),
        near=clair.jaccard(chosen).filter(pl.col("number") < 4).sum(),
    )
    assert result.sort("group")["mean"].to_list() == [2.5, 1.5, None]
    assert result.sort("group")["most"].to_list() == [2, 1, None]
    assert FRAME.filter(clair.jaccard(chosen) > 0.5)["number"].to_list() == [4]


@pytest.mark.parametrize("value", ["kitten", "", None])
def test_a_literal_or_one_value_stands_beside_every_row(value: str | None) -> None:
    literal = pl.lit(value, dtype=pl.String)
    one = pl.col("fixed").first()
    frame = FRAME.with_columns(fixed=literal)
    for other in (literal, one, pl.col("fixed").max()):
        for make in ("levenshtein", "jaccard", "length_ratio", "edit_position"):
            there = frame.select(getattr(clair, make)(other).alias("x"))["x"]
            back = frame.select(getattr(other.clair, make)("rejected").alias("x"))["x"]
            full = frame.select(
                there=getattr(clair, make)("fixed"), back=getattr(pl.col("fixed").clair, make)("rejected")
            )
            assert there.to_list() == full["there"].to_list()
            assert back.to_list() == full["back"].to_list()
    assert frame.lazy().select(clair.score(literal)).collect(engine="streaming").height == 6


def test_a_literal_in_groups() -> None:
    result = FRAME.group_by("group").agg(x=clair.levenshtein(pl.lit("the same"))).sort("group")
    first, second, third, fourth, fifth, sixth = text.levenshtein(A, ["the same"] * 6).to_pylist()
    assert result["x"].to_list() == [[first, fourth], [second, third, fifth], [sixth]]
    assert (second, fifth) == (None, 0)


def test_empty_frames_have_their_types() -> None:
    empty = FRAME.clear()
    full = FRAME.select(**EXPRESSIONS, score=clair.score(chosen)).schema
    for other in (chosen, pl.lit("x"), pl.lit(None)):
        result = empty.select(clair.levenshtein(other).alias("x"), clair.score(other).alias("score"))
        assert result.schema == {"x": pl.UInt32, "score": clair_apo.polars.SCORE}
        assert result.height == 0
    assert empty.select(**EXPRESSIONS, score=clair.score(chosen)).schema == full
    assert empty.lazy().select(**EXPRESSIONS).collect(engine="streaming").height == 0
    assert empty.group_by("group").agg(**EXPRESSIONS).height == 0


def test_only_nulls() -> None:
    frame = FRAME.with_columns(rejected=pl.lit(None))
    assert frame.schema["rejected"] == pl.Null
    result = frame.select(**EXPRESSIONS).with_columns(frame.select(clair.score(chosen).struct.unnest()))
    assert set(result.null_count().row(0)) == {6}


@pytest.mark.parametrize(
    "dtype", [pl.Categorical, pl.Enum([x for x in dict.fromkeys(A + B) if x is not None])]
)
@pytest.mark.parametrize("sides", [["rejected"], ["chosen"], ["rejected", "chosen"]])
def test_categories(dtype: Any, sides: list[str]) -> None:
    frame = FRAME.with_columns(pl.col(side).cast(dtype) for side in sides)
    for result in (
        frame.select(**EXPRESSIONS),
        frame.lazy().select(**EXPRESSIONS).collect(engine="streaming"),
    ):
        for name, expected in EXPECTED.items():
            assert result[name].to_list() == expected, name


def test_the_result_has_the_name_of_the_first_column() -> None:
    for name, (expression, _) in MEASURES.items():
        assert FRAME.select(expression).columns == ["rejected"], name


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_what_is_not_a_pair_of_texts_is_named(engine: Any) -> None:
    for name in ("levenshtein", "jaccard", "length_ratio", "edit_position", "score"):
        with pytest.raises(TypeError, match=r"of type .*Int64.*, which is not text"):
            FRAME.lazy().select(getattr(clair, name)("number")).collect(engine=engine)
    with pytest.raises(ValueError, match="unknown unit 'line'"):
        FRAME.lazy().select(clair.levenshtein(chosen, unit="line")).collect(engine=engine)
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="missing"):
        FRAME.lazy().select(clair.jaccard("missing")).collect(engine=engine)
    with pytest.raises(ValueError, match="6 rows and `b` has 2"):
        FRAME.select(clair.levenshtein(chosen.head(2)))


def test_a_stream_over_a_file(tmp_path: Any) -> None:
    path = tmp_path / "pairs.parquet"
    pl.concat([FRAME] * 500).write_parquet(path, row_group_size=100)
    lazy = pl.scan_parquet(path).with_columns(distance=clair.levenshtein("chosen"))
    lazy.filter(pl.col("distance") > 1).sink_parquet(tmp_path / "far.parquet")
    assert pl.read_parquet(tmp_path / "far.parquet").height == 3 * 500


samples = st.text("ab é漢\n", max_size=12) | st.none()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(samples, samples, st.integers(0, 2)), max_size=12), st.integers(0, 11))
def test_contexts_agree_on_any_frame(rows: list[tuple[Any, Any, int]], cut: int) -> None:
    schema = {"rejected": pl.String, "chosen": pl.String, "group": pl.Int64}
    whole = pl.DataFrame(rows, schema=schema, orient="row").with_row_index()
    frame = pl.concat([whole[:cut], whole[cut:]], rechunk=False)
    score = clair.score(chosen).alias("score")
    expected = pl.DataFrame(text.score(whole["rejected"], whole["chosen"])).to_struct("score")
    assert frame.select(score)["score"].equals(expected)
    assert frame.lazy().select(score).collect(engine="streaming")["score"].equals(expected)
    grouped = frame.lazy().group_by("group").agg("index", score).explode("index", "score")
    assert grouped.sort("index").collect()["score"].equals(expected)


def test_a_mask_of_near_duplicates() -> None:
    frame = pl.DataFrame({"group": [1, 1, 2, 2, 1], "text": ["a b", "A  b", "a b", None, "c"]})
    mask = pl.col("text").clair.is_near_duplicate()
    assert frame.select(mask)["text"].to_list() == [False, True, True, False, False]
    assert frame.select(mask.over("group"))["text"].to_list() == [False, True, False, False, False]
    assert frame.lazy().filter(~mask).collect()["text"].to_list() == ["a b", None, "c"]
    assert frame.clear().select(mask).schema == {"text": pl.Boolean}
