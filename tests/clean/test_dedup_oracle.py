"""Which rows stay, against a plain computation over all pairs; and how good MinHash is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clair_apo.text as text
from clair_apo.clean import dedup, duplicates
from report.oracle import words


def shingles(content: str, size: int = 5) -> frozenset[tuple[str, ...]]:
    found = words(content.lower())
    if len(found) < size:
        return frozenset([tuple(found)])
    return frozenset(tuple(found[i : i + size]) for i in range(len(found) - size + 1))


def jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    same = len(a & b)
    return same / (len(a) + len(b) - same)


def real_answers(folder: Path) -> list[str]:
    table = pq.read_table(folder / "answers_rated.parquet").to_pylist()
    return [answer["response"] for row in table for answer in row["completions"]] + [
        row["second_response"] for row in table
    ]


def planted(answers: list[str], copies: int, seed: int) -> list[str]:
    """Real answers and copies of some, with words left out, repeated or replaced."""
    chance = random.Random(seed)
    rows = list(answers)
    for _ in range(copies):
        parts = chance.choice(answers).split(" ")
        for _ in range(chance.randrange(1, max(2, len(parts) // 25))):
            at = chance.randrange(len(parts))
            parts[at : at + chance.randrange(2)] = chance.choice([[], ["so"], [parts[at], parts[at]]])
            parts = parts or ["so"]
        rows.append(" ".join(parts))
    chance.shuffle(rows)
    return rows


def run(
    folder: Path, rows: list[str], **more: Any
) -> tuple[list[int], list[dict[str, Any]], dict[str, Any]]:
    """The numbers of the rows that stay, the clusters, and the summary."""
    numbers = list(range(len(rows)))
    source, out, gone = folder / "in.parquet", folder / "out.parquet", folder / "gone.parquet"
    pq.write_table(pa.table({"prompt": rows, "n": numbers}), source)
    found = dedup(source, out, clusters=gone, **more)
    return pq.read_table(out)["n"].to_pylist(), pq.read_table(gone).to_pylist(), found


def greedy(sets: list[frozenset[Any]], order: list[int], threshold: float) -> list[int]:
    kept: list[int] = []
    for i in order:
        size = len(sets[i])
        if not any(
            min(size, len(sets[k])) >= threshold * max(size, len(sets[k]))
            and jaccard(sets[i], sets[k]) >= threshold
            for k in kept
        ):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_the_rows_that_stay_on_real_answers(shared_data: Path, tmp_path: Path, threshold: float) -> None:
    rows = planted(real_answers(shared_data), 600, 1)
    sets = [shingles(row) for row in rows]
    for keep, order in (
        ("first", list(range(len(rows)))),
        ("shortest", sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i], i))),
    ):
        stays, clusters, found = run(tmp_path, rows, threshold=threshold, keep=keep)
        expected = greedy(sets, order, threshold)
        assert 1.0 - len(set(stays) ^ set(expected)) / len(rows) >= 0.995
        assert len(clusters) == found["exact"] + found["near"] > 250
        assert sorted([*stays, *(c["row"] for c in clusters)]) == list(range(len(rows)))
        place = {row: i for i, row in enumerate(order)}
        for c in clusters:
            assert c["kept_row"] in stays
            assert c["jaccard"] == jaccard(sets[c["row"]], sets[c["kept_row"]]) >= threshold
            same = " ".join(rows[c["row"]].lower().split()) == " ".join(rows[c["kept_row"]].lower().split())
            assert c["reason"] == ("exact" if same else "near")
            assert place[c["kept_row"]] < place[c["row"]]


def test_every_order_keeps_the_same_texts(shared_data: Path, tmp_path: Path) -> None:
    rows = planted(real_answers(shared_data), 400, 2)
    kept = []
    for seed in (None, 1, 2):
        if seed is not None:
            random.Random(seed).shuffle(rows)
        stays, _, _ = run(tmp_path, rows, keep="shortest")
        kept.append(sorted(rows[i] for i in stays))
    assert kept[0] == kept[1] == kept[2]


def test_spilling_makes_no_difference(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planted(real_answers(shared_data), 400, 3)
    whole = {keep: run(tmp_path, rows, keep=keep) for keep in ("first", "shortest")}
    monkeypatch.setattr(duplicates, "MEMORY", 20_000)
    for keep, expected in whole.items():
        assert run(tmp_path, rows, keep=keep) == expected


def test_pairs_at_the_threshold_are_found(tmp_path: Path) -> None:
    """5,000 planted pairs of Jaccard 0.8 to 0.82: at least 99% of them, and no other row."""
    chance = random.Random(4)
    rows: list[str] = []
    for n in range(5000):
        base = [f"{chance.getrandbits(40):x}" for _ in range(110 + n % 30)]
        rows.append(" ".join(base))
        ends = len(base) - 4
        # A new end of k words replaces k shingles: J = (s - k) / (s + k).
        k = int(ends / 9)
        rows.append(" ".join(base[:-k] + [f"{chance.getrandbits(40):x}" for _ in range(k)]))
    near = [jaccard(shingles(a), shingles(b)) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert all(0.8 <= j < 0.82 for j in near)
    stays, clusters, _ = run(tmp_path, rows)
    assert all(c["row"] == c["kept_row"] + 1 and c["row"] % 2 for c in clusters)
    assert len(clusters) >= 4950
    assert set(range(0, 10_000, 2)) <= set(stays)


@given(st.lists(st.text("ab .é漢\n", max_size=30), min_size=1, max_size=20), st.sampled_from([1, 2, 5]))
@settings(max_examples=60, deadline=None)
def test_signatures_are_those_of_the_sets(texts: list[str], size: int) -> None:
    signatures = pa.array(text.minhash(texts, shingle=size)).to_pylist()
    sets = [shingles(t, size) for t in texts]
    for a, x in zip(sets, signatures, strict=True):
        for b, y in zip(sets, signatures, strict=True):
            assert (a == b) == (x == y)


def test_signatures_estimate_jaccard(shared_data: Path) -> None:
    answers = [a for a in real_answers(shared_data) if len(shingles(a)) > 40][:300]
    copies = [" ".join(a.split(" ")[len(a.split(" ")) // 4 :]) for a in answers]
    x, y = (pa.array(text.minhash(side, seed=5)).to_pylist() for side in (answers, copies))
    errors = []
    for a, b, p, q in zip(answers, copies, x, y, strict=True):
        share = sum(i == j for i, j in zip(p, q, strict=True)) / 256
        errors.append(share - jaccard(shingles(a), shingles(b)))
    n = len(errors)
    assert abs(sum(errors) / n) < 4 * 0.028 / n**0.5
    assert (sum(e * e for e in errors) / n) ** 0.5 < 0.031


def test_minhash_of_any_column() -> None:
    texts = ["a b c d e f", None, ""]
    column = text.minhash(texts)
    array = pa.array(column)
    assert array.type.equals(pa.list_(pa.field("item", pa.uint32(), nullable=False), 256))
    assert array.null_count == 1
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        assert pa.array(text.minhash(pa.array(texts, kind))).to_pylist() == array.to_pylist()
    few = pa.array(text.minhash(texts, permutations=64)).to_pylist()
    assert few[0] == array.to_pylist()[0][:64]
    assert pa.array(text.minhash(texts, seed=1)).to_pylist()[0] != array.to_pylist()[0]
    with pytest.raises(ValueError, match="permutations"):
        text.minhash(texts, permutations=0)
    with pytest.raises(TypeError, match="`column`"):
        text.minhash(pa.array([1]))


@given(
    st.lists(st.none() | st.text("ab .é漢\n", max_size=30), max_size=20),
    st.sampled_from([1, 2, 5]),
    st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_near_duplicates_of_a_column(texts: list[str | None], size: int, cut: int) -> None:
    """With a threshold of 1 nothing hangs on chance: the plain twin says which rows go, and why."""
    column = pa.chunked_array([texts[:cut], texts[cut:]], pa.string_view())
    found = pa.record_batch(text.near_duplicates(column, threshold=1.0, shingle=size))
    same = [None if row is None else " ".join(row.lower().split()) for row in texts]
    expected = []
    for row, content in enumerate(texts):
        for kept in range(row if same[row] else 0):
            before = texts[kept]
            if content is None or before is None or not same[kept]:
                continue
            if shingles(content, size) == shingles(before, size):
                reason = "exact" if same[row] == same[kept] else "near"
                expected.append({"row": row, "kept_row": kept, "jaccard": 1.0, "reason": reason})
                break
    # A text equal to one that went goes because of the same row, and as near.
    gone = {e["row"]: e for e in expected}
    assert [(f["row"], f["kept_row"], f["jaccard"]) for f in found.to_pylist()] == [
        (e["row"], e["kept_row"], 1.0) for e in expected
    ]
    for f in found.to_pylist():
        assert f["reason"] == gone[f["row"]]["reason"]


@pytest.mark.parametrize("keep", ["first", "shortest"])
def test_near_duplicates_are_those_of_the_command(shared_data: Path, tmp_path: Path, keep: Any) -> None:
    rows = planted(real_answers(shared_data), 400, 5)
    for more in ({}, {"exact": True}, {"threshold": 0.5, "shingle": 3, "seed": 7}):
        _, clusters, _ = run(tmp_path, rows, keep=keep, **more)
        found = pa.record_batch(text.near_duplicates(rows, keep=keep, **more)).to_pylist()
        assert found
        assert found == [{name: c[name] for name in found[0]} for c in clusters]


def test_impossible_settings_of_near_duplicates() -> None:
    for wrong in ({"threshold": 0.01}, {"threshold": float("nan")}, {"shingle": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="from"):
            text.near_duplicates(["a"], **wrong)
    with pytest.raises(ValueError, match="first, shortest"):
        text.near_duplicates(["a"], keep="lowest")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`texts`"):
        text.near_duplicates(pa.array([1]))
    assert pa.record_batch(text.near_duplicates([])).num_rows == 0


def test_true_copies_in_a_crowd_that_is_nearly_near() -> None:
    """5,000 texts of one template, each pair at J = 0.79, and 200 copies of some at 0.82."""
    chance = random.Random(6)

    def words_of(count: int) -> list[str]:
        return [f"{chance.getrandbits(40):x}" for _ in range(count)]

    template = words_of(140)
    crowd = [template + words_of(18) for _ in range(5000)]
    copied = [chance.randrange(5000) for _ in range(200)]
    rows = crowd + [crowd[i][:-15] + words_of(15) for i in copied]
    assert 0.79 < jaccard(shingles(" ".join(rows[0])), shingles(" ".join(rows[1]))) < 0.8
    found = pa.record_batch(text.near_duplicates([" ".join(row) for row in rows])).to_pylist()
    assert all(f["row"] >= 5000 and f["jaccard"] >= 0.8 for f in found)
    assert len(found) >= 198
