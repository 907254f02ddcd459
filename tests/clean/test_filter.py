"""`filter`: conditions over columns and measures, row by row, whatever the size of a batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo import text
from clair_apo.clean import filter_rows
from clair_apo.clean.condition import MEASURES, Condition
from clair_apo.clean.rows import BATCH_ROWS
from clair_apo.errors import ClairError, UsageError
from cli import clair


def kept(source: Path, where: str) -> list[dict[str, Any]]:
    output = source.with_name("kept.parquet")
    filter_rows(source, where, output)
    found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return found


@pytest.mark.parametrize("name", ["pairs_revision", "pairs_stronger_preferred"])
@pytest.mark.parametrize(
    "where",
    [
        "levenshtein < 800 and jaccard > 0.3",
        "NOT identical AND length_ratio BETWEEN 0.9 AND 1.1",
        "chosen_tokens + rejected_tokens < 700 OR prompt LIKE '%?'",
        "word_edit_ratio > 0.4 AND LENGTH(chosen) = chosen_chars",
        "levenshtein > 100",
    ],
)
def test_real_pairs_as_polars_over_the_whole_table(
    shared_data: Path, tmp_path: Path, name: str, where: str
) -> None:
    source = shared_data / f"{name}.parquet"
    table = pq.read_table(source)
    frame = pl.DataFrame(table)
    scores = pl.DataFrame(pa.table(text.score(table["rejected"], table["chosen"])))
    tokens = {f"{s}_tokens": pl.Series(text.count_tokens(table[s])) for s in ("chosen", "rejected")}
    whole = frame.with_columns(*scores.get_columns(), **tokens)
    want = whole.filter(pl.sql_expr(where)).select(table.column_names)
    assert 0 < len(want) < 200
    done = clair("filter", source, "--where", where, "--output", tmp_path / "out.parquet", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows_in"] == 200
    assert found["rows_out"] == len(want)
    assert found["left_out"] == 200 - len(want)
    kept_table = pq.read_table(tmp_path / "out.parquet")
    assert kept_table.schema.equals(table.schema, check_metadata=True)
    assert kept_table.to_pylist() == want.to_dicts()


def test_a_column_of_the_table_is_not_measured_anew(tmp_path: Path) -> None:
    table = pa.table({"chosen": ["a", "a"], "rejected": ["b", "b"], "levenshtein": [7, 700]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert [row["levenshtein"] for row in kept(tmp_path / "in.parquet", "levenshtein > 100")] == [700]


def test_structs_lists_and_names(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "usage": [{"cost_usd": 0.5}, {"cost_usd": 2.0}, None],
            "flags": [["x", "y"], [], ["y"]],
            "chosen-rating": [1, 2, 3],
            "extra": [{"deep": {"er": n}} for n in range(3)],
            "created_at": pa.array([0, 1 << 50, None], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")

    def ids(where: str) -> str:
        return "".join(row["id"] for row in kept(tmp_path / "in.parquet", where))

    assert ids("usage.cost_usd < 1") == "a"
    assert ids("ARRAY_CONTAINS(flags, 'y')") == "ac"
    assert ids("NOT ARRAY_CONTAINS(flags, 'x')") == "bc"
    assert ids("ARRAY_LENGTH(flags) = 0") == "b"
    assert ids('"chosen-rating" >= 2') == "bc"
    assert ids("extra.deep.er = 1") == "b"
    assert ids("created_at < DATE '2000-01-01'") == "a"
    for time in ("'2000-01-01'", "TIMESTAMP '2000-01-01 00:00:00'"):
        with pytest.raises(UsageError, match="DATE '2026-01-31'"):
            ids(f"created_at < {time}")
    assert ids("id IN ('a', 'c') AND usage IS NULL") == "c"
    assert ids("CASE WHEN id = 'a' THEN false ELSE true END") == "bc"
    assert ids("true") == "abc"


def test_where_the_rows_went(tmp_path: Path) -> None:
    lines = [
        {"chosen": "abc", "rejected": "abd", "score": 1.5},
        {"chosen": "abc", "rejected": "xyz", "score": 2},
        {"chosen": "abc", "rejected": "abc", "score": None},
        {"chosen": None, "rejected": "abc", "score": 3},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("broken\n" + "".join(json.dumps(line) + "\n" for line in lines))
    found = filter_rows(source, "levenshtein < 3 AND score > 1", tmp_path / "out.jsonl")
    assert {k: found[k] for k in ("rows_in", "rows_out", "left_out", "undecided", "skipped")} == {
        "rows_in": 5,
        "rows_out": 1,
        "left_out": 1,
        "undecided": 2,
        "skipped": 1,
    }
    assert {k: (v["rows"], v["first_row"]) for k, v in found["skipped_reasons"].items()} == {
        "unreadable": (1, 0)
    }
    assert {k: (v["rows"], v["first_row"]) for k, v in found["unmeasured"].items()} == {"null": (1, 4)}
    assert (tmp_path / "out.jsonl").read_text() == json.dumps(lines[0]) + "\n"
    # Without a measure the row without a pair is as good as any.
    found = filter_rows(source, "score > 1", tmp_path / "out.jsonl")
    assert (found["rows_out"], found["undecided"], found["skipped"], found["computed"]) == (3, 1, 1, [])
    done = clair(
        "filter", source, "--where", "levenshtein < 3 AND score > 1", "--output", tmp_path / "o.parquet"
    )
    assert "the condition is null" in done.stdout
    assert "one side is null; first: row 4" in done.stdout


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("levenshtein > AVG(levenshtein)", 2, "an aggregate (Mean) cannot be used"),
        ("COUNT(*) > 1", 2, "COUNT cannot be used"),
        ("SUM(score) OVER () > 1", 2, "an aggregate"),
        ("ROW_NUMBER() OVER (ORDER BY score) < 3", 2, "a window function (OVER) cannot be used"),
        ("RANK() OVER (ORDER BY score) < 3", 2, "the function Rank cannot be used"),
        ("LAG(score) OVER (ORDER BY score) < 3", 2, "a window function (OVER) cannot be used"),
        ("QUANTILE_CONT(score, 0.5) < score", 2, "the function Quantile cannot be used"),
        ("UNNEST(flags) = 'x'", 2, "UNNEST cannot be used"),
        ("score > (SELECT MAX(score) FROM self)", 2, "a subquery cannot be used"),
        ("score > (SELECT 1)", 2, "a subquery cannot be used"),
        ("id IN (FROM read_csv('none.csv'))", 2, "a subquery cannot be used"),
        ("id IN (/* ' */ FROM \"read_csv\"('none.csv'))", 2, "a subquery cannot be used"),
        ("id IN (WITH a AS (FROM read_csv('none.csv')) FROM a)", 2, "opens no other file"),
        ("prompt LIKE 'x' OR id IN (SELECT id FROM read_parquet('none.parquet'))", 2, "opens no other"),
        ("COLUMNS('score') > 1", 2, "cannot be used"),
        ("prompt = ANY(chosen)", 2, "Sql.IsIn cannot be used"),
        ("score >", 2, "not a SQL condition"),
        ("score > 1; DROP TABLE x", 2, "not a SQL condition"),
        ("score + 1", 2, "gives a value of type"),
        ("score = 'x'", 2, "cannot compare string with numeric"),
        ("prompt > 3", 2, "CAST(column AS DOUBLE)"),
        ("CAST(prompt AS INT) > 3", 2, "TRY_CAST gives null"),
        ("scroe > 1", 1, "no column `scroe`; the nearest is `score`"),
        ("levenstein > 1", 1, "the nearest is `levenshtein`"),
        ('prompt = "what"', 1, "text goes in single quotes: 'what'"),
        ("chosen-rating > 1", 1, 'such a name goes in double quotes: "chosen-rating"'),
        ("usage.cost > 1", 1, "no field `cost`; usage has calls, cost_usd"),
    ],
)
def test_what_is_no_condition(tmp_path: Path, where: str, status: int, said: str) -> None:
    table = pa.table(
        {
            "prompt": ["p"],
            "chosen": ["a"],
            "rejected": ["b"],
            "score": [1],
            "flags": [["x"]],
            "chosen-rating": [1],
            "usage": [{"calls": 1, "cost_usd": 0.5}],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    done = clair("filter", tmp_path / "in.parquet", "--where", where, "--output", tmp_path / "out.parquet")
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith(f"clair-apo: --where {where}: ")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_text_of_a_csv_is_compared_as_numbers_where_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,score\na,3\nb,12\nc,x\n")
    with pytest.raises(UsageError, match="CAST"):
        filter_rows(tmp_path / "in.csv", "score > 5", tmp_path / "out.jsonl")
    filter_rows(tmp_path / "in.csv", "TRY_CAST(score AS DOUBLE) > 5", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == '{"id": "b", "score": "12"}\n'


def test_measures_need_pairs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p"], "score": [1]}), tmp_path / "in.parquet")
    assert len(kept(tmp_path / "in.parquet", "score = 1")) == 1
    with pytest.raises(ClairError, match="holds no preference pairs"):
        kept(tmp_path / "in.parquet", "jaccard > 0")


@settings(max_examples=25, deadline=None)
@given(
    scores=st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=60),
    group=st.integers(1, 20),
    bound=st.integers(-3, 3),
)
def test_batches_do_not_matter(scores: list[int | None], group: int, bound: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "in.parquet", Path(name) / "out.parquet"
        table = pa.table({"n": pa.array(range(len(scores))), "score": pa.array(scores, pa.int64())})
        pq.write_table(table, source, row_group_size=group)
        found = filter_rows(source, f"score > {bound}", output)
        want = [n for n, score in enumerate(scores) if score is not None and score > bound]
        assert pq.read_table(output)["n"].to_pylist() == want
        assert found["undecided"] == scores.count(None)
        assert found["rows_in"] == found["rows_out"] + found["left_out"] + found["undecided"]


def test_every_measure_is_computed_as_stats_has_it(shared_data: Path) -> None:
    from clair_apo.clean.filtering import measured

    table = pq.read_table(shared_data / "pairs_revision.parquet").slice(0, 20)
    rejected, chosen = table["rejected"].combine_chunks(), table["chosen"].combine_chunks()
    scores = pa.table(text.score(rejected, chosen))
    together = dict(measured(list(MEASURES), rejected, chosen))
    for name, kind in MEASURES.items():
        alone = dict(measured([name], rejected, chosen))[name]
        assert alone.type == together[name].type == kind
        assert alone.equals(together[name]), name
        if name in scores.column_names:
            assert alone.to_pylist() == scores[name].to_pylist(), name


def test_without_polars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ClairError, match=r"pip install 'clair-apo\[polars\]'"):
        Condition("a > 1", pa.schema([("a", pa.int64())]))


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from clair_apo import cli\n"
        "try: cli.main(['filter', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pyarrow', 'polars', 'rich', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "levenshtein < 800 and jaccard > 0.3" in done.stdout


def test_counts_can_be_subtracted(tmp_path: Path) -> None:
    """They are unsigned in the tables; a difference of them is not."""
    rows = {"chosen": ["a", "long answer", ""], "rejected": ["long answer", "a", "x"]}
    table = pa.table({**rows, "n": pa.array([1, 2, 3], pa.uint32())})
    pq.write_table(table, tmp_path / "in.parquet")
    assert [r["n"] for r in kept(tmp_path / "in.parquet", "chosen_chars - rejected_chars > 0")] == [2]
    assert [r["n"] for r in kept(tmp_path / "in.parquet", "n - 2 < 0")] == [1]


def test_a_condition_of_very_many_terms_is_an_error_for_people(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "in.parquet")
    with pytest.raises(UsageError, match="too deep"):
        kept(tmp_path / "in.parquet", " OR ".join(f"n = {i}" for i in range(900)))


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(1000)}), tmp_path / "in.parquet")
    code = (
        "import sys; from clair_apo.clean import filter_rows\n"
        "for i in range(20): filter_rows(sys.argv[1], f'n > {i}', sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    runs = [subprocess.Popen(command) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert len(pq.read_table(tmp_path / "out.parquet")) == 980
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_null_is_decided_as_in_sql(tmp_path: Path) -> None:
    table = pa.table(
        {
            "method": ["clair", "clair", "other", None, "other"],
            "chosen": ["a b", None, None, None, "a c"],
            "rejected": ["a c", "x", "x", "x", "a c"],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")

    def counts(where: str) -> tuple[int, ...]:
        found = filter_rows(tmp_path / "in.parquet", where, tmp_path / "out.parquet")
        assert found["unmeasured"]["null"]["rows"] == 3
        return tuple(found[k] for k in ("rows_out", "left_out", "undecided", "skipped"))

    assert counts("jaccard > 0.9 OR method = 'clair'") == (3, 0, 2, 0)
    assert counts("jaccard > 0.9 AND method = 'clair'") == (0, 3, 2, 0)
    assert counts("jaccard IS NULL") == (3, 2, 0, 0)
    assert counts("COALESCE(jaccard, 1) > 0.9") == (4, 1, 0, 0)


def test_divided_by_nothing(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 0, -1, 1], "b": [0, 0, 0, 2]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert [row["a"] for row in kept(tmp_path / "in.parquet", "a / b > 1000")] == [1, 0]


def test_words_of_sql_within_quotes_are_text(tmp_path: Path) -> None:
    table = pa.table({"select": ["(from x", "it's select 1", "read_csv('x')", "y"]})
    pq.write_table(table, tmp_path / "in.parquet")
    where = """ "select" IN ('(from x', 'it''s select 1', 'read_csv(''x'')') -- select """
    assert len(kept(tmp_path / "in.parquet", where)) == 3


@pytest.mark.parametrize("query", ["SELECT id FROM", "FROM", "/* ' */ FROM", "WITH a AS (SELECT 1) FROM"])
def test_a_subquery_opens_no_file(tmp_path: Path, query: str) -> None:
    os.mkfifo(tmp_path / "pipe.csv")  # whoever opens it for reading waits for ever
    where = f"""id IN ({query} "read_csv"('{tmp_path / "pipe.csv"}'))"""
    with pytest.raises(UsageError, match="a subquery cannot be used"):
        Condition(where, pa.schema([("id", pa.string())]))


def test_rows_without_a_pair_keep_their_places_in_parquet(tmp_path: Path) -> None:
    """Parquet's pairs come from the rows at hand: nulls among them, over several batches."""
    rows = 3 * BATCH_ROWS // 2
    chosen = [None if n % 7 == 3 else "a" * (n % 5) for n in range(rows)]
    table = pa.table({"n": list(range(rows)), "chosen": chosen, "rejected": ["b"] * rows})
    pq.write_table(table, tmp_path / "in.parquet")
    found = filter_rows(tmp_path / "in.parquet", "levenshtein = 3", tmp_path / "out.parquet")
    kept = pq.read_table(tmp_path / "out.parquet")["n"].to_pylist()
    assert kept == [n for n in range(rows) if n % 7 != 3 and n % 5 == 3]
    assert found["unmeasured"]["null"]["rows"] == found["undecided"] == sum(c is None for c in chosen)
    assert found["rows_in"] == found["rows_out"] + found["left_out"] + found["undecided"]
