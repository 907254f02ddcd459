"""metrics.jsonl and what is measured of a step."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo.errors import ClairError
from clair_apo.train.metrics import MetricsFile, StepMetrics, mfu, read_metrics


@dataclass
class Logps:
    chosen: torch.Tensor
    rejected: torch.Tensor


Pair = tuple[float, float, float, float, int, int, float]  # policy, reference, tokens of each side; weight


def of(pairs: list[Pair], loss: float = 0.0, **counts: int) -> dict[str, Any]:
    """What the loop hands over for a microbatch."""
    pc, pr, rc, rr, tc, tr, weights = (
        torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True)
    )
    return {
        "loss": torch.tensor(loss),
        "policy": Logps(pc, pr),
        "reference": Logps(rc, rr),
        "rewards": (0.1 * (pc - rc), 0.1 * (pr - rr)),
        "tokens": (tc, tr),
        "weights": weights,
        "physical": counts.get("physical", 100),
        "logical": counts.get("logical", 150),
    }


def plainly(pairs: list[Pair]) -> dict[str, float]:
    """The same means, one pair after the other."""
    sides: dict[str, list[float]] = {}
    kl = tokens = 0.0
    for pc, pr, rc, rr, tc, tr, weight in pairs:
        if not weight:
            continue
        for name, policy, reference, count in (("chosen", pc, rc, tc), ("rejected", pr, rr, tr)):
            if count:
                sides.setdefault(f"logps/{name}", []).append(policy)
                sides.setdefault(f"logps/{name}_relative", []).append(policy - reference)
                sides.setdefault(f"rewards/{name}", []).append(0.1 * (policy - reference))
                mean = (policy - reference) / count
                kl += count * (math.exp(-mean) - 1 + mean)
                tokens += count
        if tc and tr:
            margin = 0.1 * (pc - rc) - 0.1 * (pr - rr)
            sides.setdefault("rewards/margins", []).append(margin)
            sides.setdefault("rewards/accuracies", []).append(margin > 0)
    found = {name: sum(values) / len(values) for name, values in sides.items()}
    return found | ({"kl": kl / tokens} if tokens else {})


logps = st.floats(-300, 0, width=32)
some_pairs = st.lists(
    st.tuples(
        logps,
        logps,
        logps,
        logps,
        st.integers(0, 400),
        st.integers(0, 400),
        st.sampled_from([0.0, 1.0, 1.0]),
    ),
    min_size=1,
    max_size=12,
).filter(lambda pairs: all(abs(p[0] - p[2]) < 50 * p[4] and abs(p[1] - p[3]) < 50 * p[5] for p in pairs))


@settings(max_examples=200, deadline=None)
@given(some_pairs, st.integers(1, 5))
def test_means_are_those_of_the_pairs_however_they_are_cut(pairs: list[Pair], size: int) -> None:
    measured = StepMetrics()
    for start in range(0, len(pairs), size):
        measured.add(**of(pairs[start : start + size], loss=0.25))
    result = measured.result()
    for name, value in plainly(pairs).items():
        assert result[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert result["loss"] == pytest.approx(0.25 * -(-len(pairs) // size))
    assert result["pairs"] == sum(p[-1] > 0 for p in pairs)


PAIR: Pair = (-10.0, -20.0, -12.0, -15.0, 4, 5, 1.0)


def test_a_side_that_no_row_has_is_absent() -> None:
    measured = StepMetrics()
    measured.add(**of([(-3.0, 0.0, -4.0, 0.0, 7, 0, 1.0)]))
    result = measured.result()
    assert result["logps/chosen_relative"] == 1.0
    for name in ("logps/rejected", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert name not in result


def test_a_filler_counts_nowhere_even_if_it_is_nan() -> None:
    measured = StepMetrics()
    measured.add(**of([PAIR, (math.nan, math.nan, 0.0, 0.0, 3, 3, 0.0)]))
    result = measured.result()
    assert result["pairs"] == 1
    assert result["rewards/margins"] == pytest.approx(0.1 * 2 + 0.1 * 5)
    assert all(math.isfinite(value) for value in result.values())


def test_the_loss_of_several_steps_is_their_mean_and_counts_add_up() -> None:
    gathered = StepMetrics()
    for loss in (1.0, 0.5):
        step = StepMetrics()
        step.add(**of([PAIR], loss=loss / 2))
        step.add(**of([PAIR], loss=loss / 2))
        gathered.merge(step)
    result = gathered.result()
    assert result["loss"] == pytest.approx(0.75)
    assert (result["pairs"], result["tokens"], result["tokens_logical"]) == (4, 400, 600)
    assert result["sharing"] == 1.5
    assert (gathered.physical, gathered.logical) == (400, 600)
    assert StepMetrics().result() == {}


def test_rates_count_the_time_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 101.0, 102.0, 104.0, 104.5])
    monkeypatch.setattr("clair_apo.train.metrics.time.perf_counter", lambda: next(clock))
    gathered = StepMetrics()  # at 0; then an evaluation, until the next step begins
    step = StepMetrics()  # at 100
    with step.waiting():  # 101 to 102
        pass
    step.add(**of([PAIR], physical=900))
    gathered.merge(step)  # at 104
    result = gathered.result()  # the device is done at 104.5
    assert result["tokens_per_second"] == pytest.approx(200)
    assert result["pairs_per_second"] == pytest.approx(1 / 4.5)
    assert result["data_wait"] == pytest.approx(1 / 4.5)


def test_the_start_has_no_divergence_and_none_is_negative() -> None:
    measured = StepMetrics()
    measured.add(**of([(-5.0, -6.0, -5.0, -6.0, 3, 3, 1.0)]))
    assert measured.result()["kl"] == 0
    measured.add(**of([(-5.0, -60.0, -5.0, -6.0, 3, 30, 1.0)]))
    assert measured.result()["kl"] > 0


def test_two_processes_have_the_means_of_both(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys, json, torch\n"
        f"sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "from test_metrics import StepMetrics, of\n"
        "rank = int(sys.argv[1])\n"
        f"torch.distributed.init_process_group('gloo', init_method='file://{tmp_path}/meet', "
        "rank=rank, world_size=2)\n"
        "measured = StepMetrics()\n"
        "pair = [(-1., -9., -2., -2., 4, 5, 1.), (-3., -1., -2., -2., 4, 5, 1.)][rank]\n"
        "measured.add(**of([pair], 0.5))\n"
        "print(json.dumps(measured.result()))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in ranks)
    for result in (first, second):
        assert result["loss"] == 1.0
        assert result["pairs"] == 2
        assert result["logps/chosen"] == -2.0
        assert result["logps/rejected_relative"] == -3.0
        assert result["rewards/accuracies"] == 0.5
        assert result["tokens"] == 200


def test_mfu_is_six_flops_a_parameter_and_token() -> None:
    assert mfu(10_000, 8_000_000_000, "NVIDIA H100 80GB HBM3") == pytest.approx(480e12 / 989e12)
    assert mfu(10_000, 8_000_000_000, "NVIDIA H100 80GB HBM3", processes=2) == pytest.approx(
        240e12 / 989e12
    )
    assert mfu(10_000, 8_000_000_000, "a card of next year") is None


# --- the file -----------------------------------------------------------------------------------------


def write(path: Path, records: list[dict[str, Any]], after: int = 0) -> None:
    with MetricsFile(path, after=after) as file:
        for record in records:
            file.write(record)


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write({"step": 1, "loss": 1.0})
        assert read_metrics(path) == [{"step": 1, "loss": 1.0}]
        file.write({"step": 2, "loss": 0.5})
        assert len(read_metrics(path)) == 2


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = {
        "a": math.nan,
        "b": math.inf,
        "c": torch.tensor(math.nan),
        "d": np.float32(0.5),
        "e": np.int64(3),
    }
    write(path, [{"step": 1, **values}])
    line = path.read_text()
    assert "NaN" not in line
    assert "Inf" not in line
    assert read_metrics(path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.5, "e": 3}]


def test_going_on_drops_later_steps_and_keeps_the_rest_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": n, "loss": 1 / n} for n in range(1, 6)] + [{"step": 3, "eval_loss": 0.1}])
    lines = path.read_bytes().splitlines(keepends=True)
    write(path, [{"step": 4, "loss": 9.0}], after=3)
    assert path.read_bytes() == b"".join(lines[:3] + lines[5:]) + b'{"step": 4, "loss": 9.0}\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\0\0\0\0", '{"step": "3"}']
)
def test_a_torn_last_line_is_mended(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'
    path.write_text(whole + torn)
    assert [r["step"] for r in read_metrics(path)][:2] == [1, 2]
    write(path, [{"step": 3, "loss": 0.25}], after=2)
    assert path.read_text() == whole + '{"step": 3, "loss": 0.25}\n'


def test_a_whole_line_without_its_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}')
    write(path, [{"step": 2, "loss": 0.5}], after=1)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_other_processes_touch_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 7}\n')
    with MetricsFile(path, after=0, write=False) as file:
        file.write({"step": 1})
    assert path.read_text() == '{"step": 7}\n'


def test_a_disk_that_is_full_is_said_in_words() -> None:
    with (
        MetricsFile(Path("/dev/full"), after=0) as file,
        pytest.raises(ClairError, match="/dev/full: cannot"),
    ):
        file.write({"step": 1})


def test_reading_what_is_not_there_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(ClairError, match=r"metrics\.jsonl: cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    code = (
        "import sys; from clair_apo.train.metrics import read_metrics; "
        "print(len(read_metrics(sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 False\n"
