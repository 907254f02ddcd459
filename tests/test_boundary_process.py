"""What a call must not break: forks, threads, interrupts, memory; and what results must not hang on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clair_apo.text as text

WORDS = ["the", "a", "cat", "sat", "漢字", "and", "", "naïve", "👍🏽", "x1", "—", "not", "now", ",", "."]


def column(seed: int, rows: int, words: int) -> list[str | None]:
    random = Random(seed)
    texts = [" ".join(random.choices(WORDS, k=random.randrange(words))) for _ in range(rows)]
    return [None if random.random() < 0.02 else value for value in texts]


def script(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, with texts at hand."""
    prelude = """
    import json, os, resource, sys, time
    from random import Random
    import clair_apo.text as text

    def prose(seed, size):
        random = Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz" + str(seed)
        count = min(4000, size // 10 + 10)
        words = ["".join(random.choices(letters, k=random.randint(2, 9))) for _ in range(count)]
        return " ".join(random.choices(words, k=size // 6))[:size]

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    A = [prose(i, 800) for i in range(64)]
    B = [prose(i + 7, 700) for i in range(64)]

    def scores():
        return text.score(A, B)["levenshtein"].to_pylist()
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **more},
    )


def told(code: str, **more: str) -> Any:
    """The JSON that the code prints last."""
    done = script(code, **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- forks -----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_a_fork_after_use_works_in_both_and_in_a_fork_of_the_fork() -> None:
    result = told(
        """
        before = scores()

        def child(depth):
            pid = os.fork()
            if pid == 0:
                ok = scores() == before and (depth == 0 or child(depth - 1) == 0) and scores() == before
                os._exit(0 if ok else 3)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        codes = [child(2) for _ in range(3)]
        print(json.dumps([codes, scores() == before]))
        """
    )
    assert result == [[0, 0, 0], True]


@needs_fork
def test_forks_while_another_thread_is_in_a_call() -> None:
    """Whatever the worker threads hold at that moment, they do not exist in the child."""
    result = told(
        """
        import threading
        before, done = scores(), threading.Event()

        def busy():
            while not done.is_set():
                scores()

        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if scores() == before else 3)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        done.set()
        for thread in threads:
            thread.join()
        print(json.dumps([codes, scores() == before]))
        """
    )
    assert result == [[0] * 20, True]


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(method: str, tmp_path: Any) -> None:
    program = tmp_path / "pool.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing
            import clair_apo.text as text

            PAIRS = [(["some words " * n], ["other words " * n]) for n in range(1, 40)]

            def distance(pair):
                return text.levenshtein(*pair).to_pylist()

            if __name__ == "__main__":
                here = [distance(pair) for pair in PAIRS]
                with multiprocessing.get_context("{method}").Pool(2) as pool:
                    there = pool.map(distance, PAIRS, chunksize=5)
                print(here == there == [distance(pair) for pair in PAIRS])
            """
        )
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


# --- threads ---------------------------------------------------------------------------------------


def test_threads_at_once_get_each_their_own_results() -> None:
    inputs = [(column(seed, 100, 60), column(seed + 50, 100, 60)) for seed in range(12)]
    alone = [text.score(*pair)["levenshtein"].to_pylist() for pair in inputs]
    together: dict[int, list[Any]] = {}
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        start.wait()
        together[index] = [text.score(*inputs[index])["levenshtein"].to_pylist() for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {i: [expected] * 10 for i, expected in enumerate(alone)}


def test_a_first_use_by_many_threads_at_once() -> None:
    """Tables that are built on first use are built once, and nobody waits for ever."""
    result = told(
        """
        import threading
        start, found = threading.Barrier(8), []

        def work():
            start.wait()
            found.append((text.count_tokens(A).to_pylist(), scores()))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        print(json.dumps(len(found) == 8 and all(x == found[0] for x in found)))
        """
    )
    assert result is True


# --- interrupts ------------------------------------------------------------------------------------

LONG = {
    "characters": "text.levenshtein(many, others)",
    "score": "text.score(many * 2, others * 2)",
    "words": "text.levenshtein(many * 9, others * 9, unit='word')",
    "scripts": "text.edit_scripts(many * 3, others * 3)",
    "jaccard": "text.jaccard(many * 60, others * 60)",
    "tokens": "text.count_tokens(many * 60)",
    "two megabytes": "text.levenshtein([prose(1, 1_000_000)], [prose(2, 1_000_000)])",
    "polars": "frame.select(pl.col('a').clair.levenshtein('b'))",
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("work", LONG)
def test_an_interrupt_ends_a_long_column(work: str) -> None:
    code = f"""
    import threading, signal
    import polars as pl
    import clair_apo.polars
    size = 100_000 if {work!r} in ("characters", "polars") else 30_000
    many = [prose(1, size)] * 2000
    others = [prose(2, size)] * 2000
    frame = pl.DataFrame({{"a": many, "b": others}})
    sent = []

    def interrupt():
        time.sleep(0.6)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        {LONG[work]}
        print(json.dumps("finished"))
    except KeyboardInterrupt:
        seconds = time.monotonic() - sent[0]
        after = text.levenshtein(["kitten", None], ["sitting", "a"]).to_pylist()
        print(json.dumps([seconds, after, scores() == scores()]))
    """
    seconds, after, same = told(code)
    assert seconds < 30  # the whole column takes minutes
    assert (after, same) == ([3, None], True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_handler_that_does_not_raise_lets_the_work_go_on() -> None:
    result = told(
        """
        import signal
        seen = []
        many, others = [prose(1, 20_000)] * 60, [prose(2, 20_000)] * 60
        first = text.levenshtein(many[:1], others[:1]).to_pylist()
        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        found = None
        while found is None or not seen:
            found = text.levenshtein(many, others).to_pylist()
        print(json.dumps([len(seen), found == first * 60]))
        """
    )
    assert result == [1, True]


def test_work_that_ends_the_process_while_threads_run() -> None:
    """The interpreter goes down under a call of a daemon thread without a crash."""
    done = script(
        """
        import threading
        many = [prose(1, 50_000)] * 500
        threading.Thread(target=lambda: text.levenshtein(many, many[::-1]), daemon=True).start()
        threading.Thread(target=lambda: text.score(many, [x[::-1] for x in many]), daemon=True).start()
        time.sleep(0.3)
        print("out")
        """
    )
    assert (done.returncode, done.stdout) == (0, "out\n"), done.stderr


# --- memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_over_many_rounds() -> None:
    growth = told(
        """
        import pyarrow as pa
        left, right = pa.array(A * 4), pa.array(B * 4, pa.string_view())

        def once():
            text.score(left, right)
            text.levenshtein(left, right, unit="word")
            text.jaccard(A, B)
            text.edit_scripts(left, right)
            text.diff(A[0], B[0])
            text.count_tokens(left)
            for wrong in (["a"], [1], pa.array([1] * 64)):
                try:
                    text.score(A, wrong)
                except (TypeError, ValueError):
                    pass

        for _ in range(20):
            once()
        before = resident()
        for _ in range(200):
            once()
        print(json.dumps(resident() - before))
        """
    )
    # A round's results alone are half a MiB: what leaked would be a hundred.
    assert growth < 12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB")
@pytest.mark.parametrize(
    ("size", "call"),
    [
        (1_000_000, "text.score([a], [b])['levenshtein'].to_pylist()[0]"),
        (500_000, "text.levenshtein([a], [b]).to_pylist()[0]"),
        (1_000_000, "text.edit_scripts([a], [b])"),
        (1_000_000, "text.diff(a, b)"),
    ],
    ids=["score", "levenshtein", "edit scripts", "diff"],
)
def test_a_megabyte_each_quite_different_in_seconds_and_linear_memory(size: int, call: str) -> None:
    """A full table would be 10^12 cells; the time is bounded by its cap, the memory by the lengths."""
    small, large, seconds, distance = told(
        f"""
        def grown(size):
            a, b = prose(1, size), prose(2, size)
            before, start = peak(), time.monotonic()
            result = {call}
            return peak() - before, time.monotonic() - start, result

        text.score(A, B)
        small, _, _ = grown({size} // 4)
        large, seconds, result = grown({size})
        print(json.dumps([small, large, seconds, result if isinstance(result, int) else None]))
        """
    )
    # A cell at a time it is more than a thousand; of half a megabyte, some three hundred.
    assert seconds < 180
    assert large < max(4 * small, 40) + 150
    if "levenshtein" in call:
        assert size / 2 < distance <= size


def test_huge_texts_of_few_edits_among_small_ones_are_exact() -> None:
    result = told(
        """
        a = prose(1, 2_000_000)
        b = a[:500_000] + "Q" + a[500_000:1_500_000] + a[1_500_003:]
        rows = text.score(["x", a, None, ""], ["y", b, a, b[:5]])
        print(json.dumps([rows["levenshtein"].to_pylist(), rows["identical"].to_pylist()]))
        """
    )
    assert result == [[1, 4, None, 5], [False, False, None, False]]


# --- what results do not hang on -------------------------------------------------------------------


def everything(a: Any, b: Any) -> dict[str, Any]:
    table = text.score(a, b)
    return {
        **{name: table[name].to_pylist() for name in table.schema.names},
        "alone": text.levenshtein(a, b).to_pylist(),
        "words": text.levenshtein(a, b, unit="word").to_pylist(),
        "ratio": text.levenshtein_ratio(a, b).to_pylist(),
        "sets": text.jaccard(a, b).to_pylist(),
        "scripts": text.edit_scripts(a, b).to_pylist(),
        "tokens": text.count_tokens(a).to_pylist(),
    }


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_results_do_not_hang_on_the_number_of_threads(threads: str) -> None:
    code = """
    from hashlib import sha256
    A, B = [prose(i, 40 * i) for i in range(300)], [prose(i // 2 * 2, 41 * i) for i in range(300)]
    table = text.score(A, B)
    columns = [table[name].to_pylist() for name in table.schema.names]
    found = [columns, text.edit_scripts(A, B).to_pylist(), text.count_tokens(A).to_pylist()]
    print(json.dumps(sha256(repr(found).encode()).hexdigest()))
    """
    assert told(code, RAYON_NUM_THREADS=threads) == told(code)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 150), max_size=6),
    st.lists(st.integers(0, 150), max_size=6),
)
def test_results_do_not_hang_on_chunks(seed: int, cuts: list[int], other_cuts: list[int]) -> None:
    a, b = column(seed, 150, 40), column(seed + 1, 150, 40)

    def chunked(values: list[str | None], cuts: list[int]) -> pa.ChunkedArray:
        bounds = [0, *sorted(cuts), len(values)]
        parts = [pa.array(values[i:j], pa.string_view()) for i, j in itertools.pairwise(bounds)]
        return pa.chunked_array(parts, pa.string_view())

    assert everything(chunked(a, cuts), chunked(b, other_cuts)) == everything(a, b)


def test_results_do_not_hang_on_neighbours() -> None:
    """Pairs are measured together: each has the measures that it has alone, in any order."""
    a, b = column(1, 200, 90), column(2, 200, 90)
    together = everything(a, b)
    order = Random(3).sample(range(200), 200)
    shuffled = everything([a[i] for i in order], [b[i] for i in order])
    for name, values in together.items():
        assert [values[i] for i in order] == shuffled[name], name
    for row in range(0, 200, 7):
        alone = everything([a[row]], [b[row]])
        assert {name: values[0] for name, values in alone.items()} == {
            name: values[row] for name, values in together.items()
        }


@pytest.mark.parametrize("kernel", ["avx512vbmi2", "avx512", "avx2", "neon", "portable"])
def test_results_do_not_hang_on_the_kernel(kernel: str) -> None:
    code = """
    from hashlib import sha256
    A, B = [prose(i, 30 * i) for i in range(200)], [prose(i // 2 * 2, 31 * i) for i in range(200)]
    table = text.score(A, B)
    columns = [table[name].to_pylist() for name in table.schema.names]
    found = [columns, text.edit_scripts(A, B).to_pylist(), text.levenshtein(A, B).to_pylist()]
    print(json.dumps([text.kernel(), sha256(repr(found).encode()).hexdigest()]))
    """
    done = script(code, CLAIR_APO_KERNEL=kernel)
    if done.returncode and "ValueError" in done.stderr and kernel in done.stderr:
        pytest.skip(f"this machine has no {kernel}")
    assert done.returncode == 0, done.stderr
    used, found = json.loads(done.stdout)
    assert used == kernel
    assert found == told(code)[1]


def test_a_kernel_that_is_unknown_is_an_error_that_names_the_known_ones() -> None:
    done = script("scores()", CLAIR_APO_KERNEL="mmx")
    assert "ValueError" in done.stderr
    assert "mmx" in done.stderr
    assert "portable" in done.stderr


def test_polars_streams_measure_what_the_whole_column_does() -> None:
    import clair_apo.polars  # noqa: F401

    a, b = column(5, 3000, 30), column(6, 3000, 30)
    frame = pl.DataFrame({"a": a, "b": b})
    parts = [frame[i : i + 97] for i in range(0, 3000, 97)]
    lazy = pl.concat(parts, rechunk=False).lazy().select(pl.col("a").clair.score("b").struct.unnest())
    expected = pl.DataFrame(text.score(a, b))
    assert lazy.collect(engine="streaming").equals(expected)
    assert lazy.collect().equals(expected)


def test_a_signal_handler_runs_while_a_call_waits() -> None:
    """Timers of the main thread are served within the call, not after it."""
    late: list[float] = []
    start = time.monotonic()

    def ring(*_: object) -> None:
        late.append(time.monotonic() - start)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        text.levenshtein(["ab" * 100_000], ["ba" * 90_000 + "c"])
        ended = time.monotonic() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended > 0.05
    assert late[0] < 0.5
