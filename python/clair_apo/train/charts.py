"""Line charts as SVG: made from numbers alone, readable in light and dark, whatever the number of steps.

Colours are CSS variables, so that a page and a picture of its own can set them for both. A long run is
drawn as means over stretches of it, with a band from the 10th to the 90th percentile behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from clair_apo.terminal import safe
from clair_apo.train.outcome import written

# Means drawn in one line; a run of fewer steps is drawn step by step.
POINTS = 120
DOTS = 40  # up to so many points have a dot each
LEFT, RIGHT, TOP, BOTTOM = 62, 132, 40, 34
# Where the values spread this many times wider than the middle 96% of them, spikes are cut off.
SPIKE = 6.0

_SIDES = ("chosen", "rejected")

STYLE = """
.surface{fill:var(--surface)} .grid{stroke:var(--grid)} .zero{stroke:var(--muted)}
.rule{stroke:var(--muted);stroke-dasharray:2 4}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--muted)}
.title{font-size:14px;font-weight:600;fill:var(--ink)} .label{font-weight:600}
.unit{font-size:12px;font-weight:400;fill:var(--muted)}
.line{fill:none;stroke-width:2;stroke-linejoin:round} .held{stroke-dasharray:6 4;stroke-width:1.5}
.band{opacity:.16;stroke:none} .dot{stroke:var(--surface);stroke-width:1}
.chosen{--series:var(--chosen)} .rejected{--series:var(--rejected)}
.one{--series:var(--one)} .two{--series:var(--two)}
.line{stroke:var(--series)} .band,.dot,.label{fill:var(--series)}
"""
LIGHT = (
    "--surface:#fff;--ink:#1f2328;--muted:#59636e;--grid:#e3e7eb;"
    "--chosen:#0969da;--rejected:#bc4c00;--one:#6639ba;--two:#1a7f37"
)
DARK = (
    "--surface:#151b23;--ink:#f0f6fc;--muted:#9aa4b0;--grid:#2b333d;"
    "--chosen:#6cb6ff;--rejected:#f69d50;--one:#b392f0;--two:#6bc46d"
)


@dataclass(frozen=True, slots=True)
class Series:
    """Values over steps, NaN where there is none. `colour`: chosen, rejected, one, two."""

    label: str
    colour: str
    steps: Sequence[float]
    values: Sequence[float]
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """`written`: how a value is written; `zero`: the line at 0 belongs to it; `rule`: a value to show, and
    its name; `fixed`: ends of the axis."""

    title: str
    unit: str
    series: Sequence[Series]
    written: str = "{:.3g}"
    zero: bool = False
    rule: tuple[float, str] | None = None
    fixed: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One drawn value: a step, or the mean of a stretch of steps."""

    step: float
    mean: float
    low: float
    high: float


def thin(steps: Sequence[float], values: Sequence[float], points: int = POINTS) -> list[Point]:
    """At most `points` points of a curve; a stretch without a finite value has NaN."""
    count = len(values)
    found = []
    stretches = min(points, count)
    for place in range(stretches):
        part = range(count * place // stretches, count * (place + 1) // stretches)
        step = (steps[part[0]] + steps[part[-1]]) / 2
        known = sorted(values[i] for i in part if math.isfinite(values[i]))
        if not known:
            found.append(Point(step, math.nan, math.nan, math.nan))
            continue
        tenth = (len(known) - 1) // 10
        mean = math.fsum(known) / len(known)
        found.append(Point(step, mean, known[tenth], known[-1 - tenth]))
    return found


class Plot:
    """A chart in `width` x `height` units: `svg`, and what a pointer over it needs to name values."""

    def __init__(self, chart: Chart, width: int = 860, height: int = 340) -> None:
        self.chart, self.width, self.height = chart, width, height
        self.points = [thin(series.steps, series.values) for series in chart.series]
        self.note = ""
        steps = [step for series in chart.series for step in series.steps]
        self._x = _widened(min(steps), max(steps)) if steps else (0.0, 1.0)
        self._y = chart.fixed or self._range()

    @property
    def empty(self) -> bool:
        """Whether there is no value to draw."""
        return not any(math.isfinite(p.mean) for points in self.points for p in points)

    def _range(self) -> tuple[float, float]:
        drawn = [p for points in self.points for p in points if math.isfinite(p.mean)]
        if not drawn:
            return 0.0, 1.0
        lows, means, highs = (
            sorted(values) for values in zip(*((p.low, p.mean, p.high) for p in drawn), strict=True)
        )
        low, high = min(lows[0], means[0]), max(highs[-1], means[-1])
        cut = max(1, len(means) // 50)
        if len(means) >= 20:
            inner = means[-1 - cut] - means[cut]
            if 0 < SPIKE * inner < means[-1] - means[0]:
                middle = means[len(means) // 2]
                farthest = max(means[0], means[-1], key=lambda end: abs(end - middle))
                self.note = f"spikes to {farthest:.3g} cut off"
                low = max(low, min(means[cut] - inner, lows[cut]))
                high = min(high, max(means[-1 - cut] + inner, highs[-1 - cut]))
        if self.chart.zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if self.chart.rule is not None and _near(self.chart.rule[0], low, high):
            low, high = min(low, self.chart.rule[0]), max(high, self.chart.rule[0])
        low, high = _widened(low, high)
        room = (high - low) * 0.06
        return low - room, high + room

    def x(self, step: float) -> float:
        low, high = self._x
        return LEFT + (step - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        bottom = self.height - BOTTOM
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    def svg(self, name: str, style: str = "") -> str:
        """The chart as an `svg` element; `name`: a letter and digits, unlike all others of a page."""
        chart = self.chart
        end_x, bottom = self.width - RIGHT, self.height - BOTTOM
        unit = f' <tspan class="unit">{_text(chart.unit)}</tspan>' if chart.unit else ""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" id="{name}" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{_text(chart.title)}">',
            f"<style>{style}</style>" if style else "",
            f'<rect class="surface" width="{self.width}" height="{self.height}" rx="8"/>',
            f'<clipPath id="{name}c"><rect x="{LEFT - 6}" y="{TOP - 6}" width="{end_x - LEFT + 12}" '
            f'height="{bottom - TOP + 12}"/></clipPath>',
            f'<text class="title" x="16" y="24">{_text(chart.title)}{unit}</text>',
        ]
        for value in ticks(*self._y, 5):
            at = _n(self.y(value))
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{end_x}" y1="{at}" y2="{at}"/>')
            parts.append(
                f'<text x="{LEFT - 8}" y="{at}" dy="4" text-anchor="end">{_text(self._tick(value))}</text>'
            )
        for step in ticks(*self._x, max(2, (end_x - LEFT) // 75), whole=True):
            parts.append(
                f'<text x="{_n(self.x(step))}" y="{bottom + 18}" text-anchor="middle">{step:,.0f}</text>'
            )
        parts.append(f'<text x="{self.width - 16}" y="{bottom + 18}" text-anchor="end">step</text>')
        if chart.zero and self._y[0] <= 0 <= self._y[1]:
            at = _n(self.y(0))
            parts.append(f'<line class="zero" x1="{LEFT}" x2="{end_x}" y1="{at}" y2="{at}"/>')
        if chart.rule is not None and self._y[0] <= chart.rule[0] <= self._y[1]:
            rule = self.y(chart.rule[0])
            parts.append(f'<line class="rule" x1="{LEFT}" x2="{end_x}" y1="{_n(rule)}" y2="{_n(rule)}"/>')
            parts.append(f'<text x="{LEFT + 6}" y="{_n(rule - 5)}">{_text(chart.rule[1])}</text>')
        parts.append(f'<g clip-path="url(#{name}c)">')
        for series, points in zip(chart.series, self.points, strict=True):
            parts += self._drawn(series, points)
        parts.append("</g>")
        parts += self._labels()
        if self.empty:
            parts.append(f'<text x="{LEFT + 12}" y="{TOP + 24}">no values</text>')
        if self.note:
            parts.append(f'<text x="{self.width - 16}" y="24" text-anchor="end">{_text(self.note)}</text>')
        return "".join([*parts, "</svg>"])

    def _drawn(self, series: Series, points: Sequence[Point]) -> list[str]:
        parts = []
        held = " held" if series.held_out else ""
        for run in _runs(points):
            if any(p.high > p.low for p in run) and len(run) > 1:
                upper = [f"{_n(self.x(p.step))} {_n(self.y(p.high))}" for p in run]
                lower = [f"{_n(self.x(p.step))} {_n(self.y(p.low))}" for p in reversed(run)]
                parts.append(f'<path class="band {series.colour}" d="M{"L".join(upper + lower)}Z"/>')
            path = "L".join(f"{_n(self.x(p.step))} {_n(self.y(p.mean))}" for p in run)
            parts.append(f'<path class="line {series.colour}{held}" d="M{path}"/>')
            if series.held_out or len(points) <= DOTS or len(run) == 1:
                size = 4 if series.held_out else 3
                for p in run:
                    at = f'cx="{_n(self.x(p.step))}" cy="{_n(self.y(p.mean))}"'
                    parts.append(f'<circle class="dot {series.colour}" {at} r="{size}"/>')
        return parts

    def _labels(self) -> list[str]:
        """The name of each curve beside its end, moved apart where they would meet."""
        ends: list[tuple[float, Series, float]] = []
        for series, points in zip(self.chart.series, self.points, strict=True):
            known = [p.mean for p in points if math.isfinite(p.mean)]
            if known:
                ends.append((min(max(self.y(known[-1]), TOP), self.height - BOTTOM), series, known[-1]))
        ends.sort(key=lambda end: end[0])
        places: list[float] = []
        for at, *_ in ends:
            places.append(max(at, places[-1] + 15) if places else at)
        over = max(0.0, places[-1] - (self.height - BOTTOM)) if places else 0.0
        return [
            f'<text class="label {series.colour}" x="{self.width - RIGHT + 8}" y="{_n(at - over)}" dy="4">'
            f"{_text(series.label)} {_text(self._written(value))}</text>"
            for at, (_, series, value) in zip(places, ends, strict=True)
        ]

    def hover(self) -> dict[str, object]:
        """What a pointer needs: the ends of the drawing, and the drawn values of each curve."""
        return {
            "box": [LEFT, TOP, self.width - RIGHT, self.height - BOTTOM, self.width],
            "series": [
                {
                    "label": _full(series),
                    "points": [
                        [float(_n(self.x(p.step))), f"{p.step:,.0f}", self._written(p.mean)]
                        for p in points
                        if math.isfinite(p.mean)
                    ],
                }
                for series, points in zip(self.chart.series, self.points, strict=True)
            ],
        }

    def _written(self, value: float) -> str:
        return written(self.chart.written, value).replace("-", "−")

    def _tick(self, value: float) -> str:
        if "%" in self.chart.written:
            return f"{value:.0%}"
        for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= 10 * size:
                return f"{value / size:,.6g}{name}".replace("-", "−")
        return f"{value:,.6g}".replace("-", "−")


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers between `low` and `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    if whole:
        size = max(1.0, size)
    first = math.ceil(low / size - 1e-9)
    last = math.floor(high / size + 1e-9)
    return [round(n * size, 12) if size >= 1e-9 else n * size for n in range(first, last + 1)]


def alone(chart: Chart, width: int = 860, height: int = 340) -> str:
    """The chart as a picture of its own, which follows the reader's choice of light or dark."""
    style = f":root{{{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}{STYLE}"
    return Plot(chart, width, height).svg("likelihoods", style)


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches without a gap."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point.mean):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _widened(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis that are not the same."""
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _near(value: float, low: float, high: float) -> bool:
    """Whether showing `value` too would not squeeze what lies between `low` and `high`."""
    span = high - low
    return low - span <= value <= high + span


def _full(series: Series) -> str:
    """A name that does not need the curve's colour beside it."""
    return safe(
        f"{series.colour}, {series.label}" if series.held_out and series.colour in _SIDES else series.label
    )


def _n(value: float) -> str:
    return f"{value:.1f}"


def _text(text: str) -> str:
    return escape(safe(text))
