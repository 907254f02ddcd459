"""training.html and its charts."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo.train.charts import LEFT, POINTS, RIGHT, TOP, Chart, Plot, Series, thin, ticks
from clair_apo.train.page import charts, page, write_likelihood_svg, write_page

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """The elements of a page and the text outside of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data


def svgs(source: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", source, re.S)]


@pytest.mark.parametrize("steps", [1, 2, 3, 41, 500, 5_000])
@pytest.mark.parametrize("evaluations", [0, 5])
def test_every_chart_is_drawn_within_its_frame(steps: int, evaluations: int, tmp_path: Path) -> None:
    records = runs.metrics(steps, evaluations=min(evaluations, steps))
    write_page(tmp_path / "training.html", records, runs.facts(records))
    source = (tmp_path / "training.html").read_text("utf-8")
    assert len(source) < 200_000
    drawn = svgs(source)
    assert len(drawn) == 9
    for svg in drawn:
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        numbers = [
            tuple(map(float, point.split()))
            for path in svg.iter(f"{SVG}path")
            for point in re.split("[MLZ]", path.attrib["d"])
            if point
        ]
        assert numbers
        assert all(LEFT <= x <= width - RIGHT and TOP - 60 <= y <= height for x, y in numbers)
    first = "".join(drawn[0].itertext())
    assert "Log-probability against the reference" in first
    assert ("held out" in first) is bool(evaluations)


def test_it_needs_nothing_from_elsewhere() -> None:
    records = runs.metrics(20)
    source = page(records, runs.facts(records))
    for tag, attributes in Page(source).elements:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "href"} & attributes.keys()
    assert re.findall(r"https?://[^\"' ]*", source) == ["http://www.w3.org/2000/svg"] * 9
    assert "url(" not in source.replace("url(#c", "")
    assert "default-src 'none'" in source


def test_light_and_dark_have_the_same_colours_by_name() -> None:
    source = page([], runs.facts([]))
    light, dark = (
        set(re.findall(r"(--\w+):#", part)) for part in source.split("prefers-color-scheme:dark", 1)
    )
    assert light == dark >= {"--page", "--surface", "--ink", "--chosen", "--rejected"}
    assert set(re.findall(r"var\((--\w+)\)", source)) - {"--series", "--edge"} <= light


def test_hostile_names_stay_text() -> None:
    records = runs.metrics(5)
    facts = runs.facts(records, objective=runs.HOSTILE, model=runs.HOSTILE, pairs=runs.HOSTILE)
    facts["dropped"] = {runs.HOSTILE: 1}
    facts["settings"][runs.HOSTILE] = [runs.HOSTILE]
    facts[runs.HOSTILE] = "</table></script><img src=x onerror=alert(1)>"
    source = page(records, facts)
    seen = Page(source)
    assert sum(tag == "script" for tag, _ in seen.elements) == 2
    assert all(tag != "img" for tag, _ in seen.elements)
    assert '<script>alert("1")</script> & "x"' in seen.text
    assert "\x1b" not in source
    assert "\x07" not in source
    svgs(source)  # well-formed XML still


def test_the_verdict_stands_at_the_top() -> None:
    records = runs.metrics(100, chosen=-9.0)
    text = Page(page(records, runs.facts(records))).text
    assert (
        "On held-out pairs: chosen down, rejected down: apo-zero promises chosen up, rejected down." in text
    )
    assert "loss = 1 − σ(r_c) + σ(r_r) with r = β log(π(y|x) / π_ref(y|x)), β = 0.1." in text


def test_gaps_stay_gaps_and_spikes_do_not_flatten_the_rest() -> None:
    records = runs.metrics(40, evaluations=0)
    for record in records[10:18]:
        record["loss"] = None
    records[3]["loss"] = 1e40
    records[30]["grad_norm"] = 1e9
    source = page(records, runs.facts(records))
    assert not re.search(r"\b(nan|inf|None)\b", source)
    loss, norm = (
        next(s for s in svgs(source) if s.attrib["aria-label"] == name)
        for name in ("Loss", "Gradient norm")
    )
    lines = [p for p in loss.iter(f"{SVG}path") if p.attrib["class"].startswith("line")]
    assert len(lines) == 3
    heights = [float(c.attrib["cy"]) for c in norm.iter(f"{SVG}circle")]
    assert max(heights) - sorted(heights)[1] > 50
    assert "spikes to 1e+09 cut off" in "".join(norm.itertext())


def test_a_run_without_a_step_has_a_page_too() -> None:
    source = page([], runs.facts([]))
    assert "no values" in source
    assert "no log-probabilities" in source


def test_hover_names_what_is_drawn() -> None:
    records = runs.metrics(500)
    source = page(records, runs.facts(records))
    data: dict[str, Any] = json.loads(Page(source).scripts[0])
    names = [series["label"] for series in data["c0"]["series"]]
    assert names == ["chosen", "rejected", "chosen, held out", "rejected, held out"]
    assert all(len(series["points"]) <= POINTS for one in data.values() for series in one["series"])
    assert data["c0"]["series"][2]["points"][-1][1:] == ["500", "+6.08"]


def test_the_picture_alone_follows_the_reader(tmp_path: Path) -> None:
    records = runs.metrics(50)
    write_likelihood_svg(tmp_path / "likelihoods.svg", records, runs.facts(records))
    svg = ET.parse(tmp_path / "likelihoods.svg").getroot()
    style = svg.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme:dark" in str(style.text)
    assert list(tmp_path.iterdir()) == [tmp_path / "likelihoods.svg"]


numbers = st.floats(-1e6, 1e6) | st.just(math.nan)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, max_size=600), st.integers(1, 50))
def test_a_thinned_curve_has_the_means_of_its_stretches(values: list[float], points: int) -> None:
    steps = [float(n + 1) for n in range(len(values))]
    found = thin(steps, values, points)
    assert len(found) == min(points, len(values))
    taken = 0
    for place, point in enumerate(found):
        end = len(values) * (place + 1) // len(found)
        known = [value for value in values[taken:end] if not math.isnan(value)]
        assert taken < point.step <= end
        taken = end
        if known:
            assert point.mean == pytest.approx(sum(known) / len(known), rel=1e-9, abs=1e-6)
            assert min(known) <= point.low <= point.high <= max(known)
        else:
            assert math.isnan(point.mean)
    assert taken == len(values)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e29, 1e29) | st.just(math.nan), max_size=60), st.booleans())
def test_any_numbers_can_be_drawn(values: list[float], zero: bool) -> None:
    series = Series("a", "one", [float(n) for n in range(len(values))], values)
    plot = Plot(Chart("t", "", [series], zero=zero))
    drawn = plot.svg("c")
    ET.fromstring(drawn)
    assert "nan" not in drawn
    json.dumps(plot.hover(), allow_nan=False)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.integers(2, 9))
def test_ticks_are_few_and_inside(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < 1e-9 * abs(low) or high <= low:
        return
    found = ticks(low, high, count)
    assert len(found) <= count + 2
    assert all(low - span * 0.01 <= tick <= high + span * 0.01 for tick in found)


def test_charts_without_a_value_are_left_out() -> None:
    records = [{"step": n, "loss": 1.0} for n in range(1, 9)]
    assert len(charts(records, runs.facts([], "sft"))) == 9
    titles = [svg.attrib["aria-label"] for svg in svgs(page(records, runs.facts([], "sft")))]
    assert titles == ["Log-probability against the reference", "Loss"]
