"""`training.html`: the curves of a run on one page that needs nothing but a browser."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from clair_apo import files
from clair_apo.terminal import safe
from clair_apo.train.charts import DARK, LIGHT, STYLE, Chart, Plot, Series, alone
from clair_apo.train.outcome import (
    CHOSEN,
    REJECTED,
    changes,
    formula,
    held_out,
    number,
    outcome,
    promise,
    terms,
    training,
    written,
)

Record = Mapping[str, Any]

# A value beyond this is as good as none, and would break the arithmetic of an axis.
HUGE = 1e30

_TABLE = (
    (CHOSEN, "chosen, nats an answer against the reference", "{:+.3f}"),
    (REJECTED, "rejected, nats an answer against the reference", "{:+.3f}"),
    ("rewards/chosen", "reward of chosen", "{:+.4f}"),
    ("rewards/rejected", "reward of rejected", "{:+.4f}"),
    ("rewards/margins", "margin of rewards", "{:+.4f}"),
    ("rewards/accuracies", "accuracy (chosen has the greater reward)", "{:.1%}"),
    ("loss", "loss", "{:.5f}"),
    ("kl", "KL from the reference, nats a token", "{:.3g}"),
    ("grad_norm", "gradient norm", "{:.3f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("pairs_per_second", "pairs/s", "{:,.2f}"),
    ("peak_memory_gib", "peak memory, GiB", "{:.2f}"),
)

_CSS = """
*{box-sizing:border-box} body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;margin:34px 0 10px} p{margin:4px 0} .muted{color:var(--muted)}
code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.said{margin:16px 0;padding:12px 16px;border-left:4px solid var(--edge);background:var(--surface);
border-radius:0 8px 8px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px;margin-top:16px}
.chart{position:relative} svg{display:block;width:100%;height:auto}
.tip{position:absolute;top:34px;pointer-events:none;background:var(--page);border:1px solid var(--grid);
border-radius:6px;padding:4px 8px;font-size:12px;line-height:1.45;white-space:nowrap;visibility:hidden}
.at{stroke:var(--muted);stroke-width:1;visibility:hidden}
.wide{overflow-x:auto} .main .chart{min-width:680px}
table{border-collapse:collapse;background:var(--surface);border-radius:8px;width:100%}
td,th{text-align:left;padding:6px 12px;border-bottom:1px solid var(--grid);vertical-align:top}
td{overflow-wrap:anywhere} th{font-weight:600;color:var(--muted)}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.name{color:var(--muted);width:30%;min-width:150px}
"""

# Shows the drawn values nearest to the pointer. Text only: nothing it shows is read as HTML.
_SCRIPT = """
const data=JSON.parse(document.getElementById("curves").textContent);
for(const [name,{box,series}] of Object.entries(data)){
 const svg=document.getElementById(name),tip=svg.parentElement.querySelector(".tip");
 const at=document.createElementNS(svg.namespaceURI,"line");
 at.setAttribute("class","at");at.setAttribute("y1",box[1]);at.setAttribute("y2",box[3]);svg.append(at);
 const hide=()=>{at.style.visibility=tip.style.visibility="hidden"};
 svg.addEventListener("pointerleave",hide);
 svg.addEventListener("pointermove",event=>{
  const scale=svg.clientWidth/box[4],x=(event.clientX-svg.getBoundingClientRect().left)/scale;
  if(x<box[0]-8||x>box[2]+8)return hide();
  const lines=[];let place=null;
  for(const {label,points} of series){
   let best=null;for(const p of points)if(!best||Math.abs(p[0]-x)<Math.abs(best[0]-x))best=p;
   if(best){if(place===null||Math.abs(best[0]-x)<Math.abs(place-x))place=best[0];
    lines.push(label+" "+best[2]+"  (step "+best[1]+")")}
  }
  if(place===null)return hide();
  tip.replaceChildren(...lines.map(l=>{const d=document.createElement("div");d.textContent=l;return d}));
  at.setAttribute("x1",place);at.setAttribute("x2",place);
  const right=place>(box[0]+box[2])/2;
  tip.style.left=right?"":place*scale+10+"px";
  tip.style.right=right?svg.clientWidth-place*scale+10+"px":"";
  at.style.visibility=tip.style.visibility="visible";
 });
}
"""


def write_page(path: Path, metrics: Sequence[Record], facts: Record) -> None:
    """Writes the page of a run: `metrics` as `read_metrics` gives them, `facts` as in train.json."""
    with files.replacing(path) as temporary:
        temporary.write_text(page(metrics, facts), "utf-8")


def write_likelihood_svg(path: Path, metrics: Sequence[Record], facts: Record) -> None:
    """Writes the curves of chosen and rejected answers as a picture of their own."""
    with files.replacing(path) as temporary:
        temporary.write_text(alone(likelihoods(metrics, facts)) + "\n", "utf-8")


def likelihoods(metrics: Sequence[Record], facts: Record) -> Chart:
    """How much likelier chosen and rejected answers have become, on training and held-out pairs."""
    return Chart(
        "Log-probability against the reference",
        f"nats an answer, {facts.get('objective')}",
        _Run(metrics).sides(CHOSEN, REJECTED),
        "{:+.2f}",
        zero=True,
    )


def charts(metrics: Sequence[Record], facts: Record) -> list[Chart]:
    """All charts of a page, the most telling first."""
    run = _Run(metrics)
    settings = facts.get("settings") or {}
    initial, clipped = facts.get("initial_loss"), settings.get("max_grad_norm")
    start = None if initial is None else (float(initial), f"start by theory, {initial:.4g}")
    clip = None if clipped is None else (float(clipped), f"clipped to {clipped:g}")
    return [
        likelihoods(metrics, facts),
        Chart(
            "Rewards",
            "β times the log-ratio",
            run.sides("rewards/chosen", "rewards/rejected"),
            "{:+.3f}",
            zero=True,
        ),
        Chart("Margin", "reward of chosen − rejected", run.both("rewards/margins"), "{:+.3f}", zero=True),
        Chart(
            "Accuracy",
            "chosen has the greater reward",
            run.both("rewards/accuracies"),
            "{:.1%}",
            fixed=(0.0, 1.0),
        ),
        Chart("Loss", "mean of a step", run.both("loss"), "{:.4f}", rule=start),
        Chart("KL from the reference", "nats a token, estimate", run.both("kl"), "{:.3g}"),
        Chart("Gradient norm", "", [run.curve("grad_norm", "norm", "one")], "{:.3f}", rule=clip),
        Chart("Learning rate", "", [run.curve("learning_rate", "rate", "one")], "{:.3g}"),
        Chart(
            "Throughput",
            "tokens a second",
            [
                run.curve("tokens_logical_per_second", "logical", "two"),
                run.curve("tokens_per_second", "physical", "one"),
            ],
            "{:,.0f}",
        ),
    ]


class _Run:
    """The curves of a run."""

    def __init__(self, metrics: Sequence[Record]) -> None:
        self._training, self._held_out = training(metrics), held_out(metrics)

    def curve(self, name: str, label: str, colour: str) -> Series:
        return self._series(self._training, name, label, colour)

    def both(self, name: str) -> list[Series]:
        """On training pairs, and on held-out ones where they were measured."""
        return [self.curve(name, "training", "one"), *self._held(name, "two")]

    def sides(self, chosen: str, rejected: str) -> list[Series]:
        """The same of chosen and of rejected answers."""
        return [
            self.curve(chosen, "chosen", "chosen"),
            self.curve(rejected, "rejected", "rejected"),
            *self._held(chosen, "chosen"),
            *self._held(rejected, "rejected"),
        ]

    def _held(self, name: str, colour: str) -> list[Series]:
        series = self._series(self._held_out, f"eval_{name}", "held out", colour)
        return [series] if any(math.isfinite(value) for value in series.values) else []

    @staticmethod
    def _series(records: Sequence[Record], name: str, label: str, colour: str) -> Series:
        values = [number(record, name) for record in records]
        values = [value if abs(value) < HUGE else math.nan for value in values]
        steps = [float(record["step"]) for record in records]
        return Series(label, colour, steps, values, name.startswith("eval_"))


# --- the page -------------------------------------------------------------------------------------


def page(metrics: Sequence[Record], facts: Record) -> str:
    """The page as HTML."""
    objective = str(facts.get("objective"))
    found = outcome(metrics, objective)
    plots = [
        Plot(chart, 1000, 380) if place == 0 else Plot(chart, 500, 250)
        for place, chart in enumerate(charts(metrics, facts))
    ]
    drawn = [plot for place, plot in enumerate(plots) if place == 0 or not plot.empty]
    names = [f"c{place}" for place in range(len(drawn))]
    figures = [
        f'<div class="chart">{plot.svg(name)}<div class="tip"></div></div>'
        for name, plot in zip(names, drawn, strict=True)
    ]
    hover = {name: plot.hover() for name, plot in zip(names, drawn, strict=True)}
    edge = {True: "var(--two)", False: "var(--rejected)", None: "var(--muted)"}[found.kept]
    where = "On held-out pairs" if found.held_out else "On training pairs"
    title = f"{facts.get('model')}, {objective}"
    about = f" with {terms(facts)}" if terms(facts) else ""
    body = [
        f"<h1>{_html(facts.get('model'))}</h1>",
        f'<p class="muted">{_html(objective)}: loss = <code>{_html(formula(facts))}</code>{_html(about)}. '
        f"It promises: {_html(promise(objective).text)}.</p>",
        f'<p class="said" style="--edge:{edge}">{where}: {_html(found.text)}.</p>',
        f'<div class="wide main">{figures[0]}</div>',
        f'<div class="charts">{"".join(figures[1:])}</div>',
        "<h2>First and last</h2>",
        _ends(metrics, found.last_steps),
        "<h2>The run</h2>",
        _table(_run(facts)),
        "<h2>Settings</h2>",
        _table([(name, _said(value)) for name, value in (facts.get("settings") or {}).items()]),
    ]
    dark = f"--page:#0d1117;{DARK}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{_html(title)}</title><style>:root{{--page:#f6f8fa;{LIGHT}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}{_CSS}</style></head><body><main>"
        + "\n".join(body)
        + f'</main><script type="application/json" id="curves">{_json(hover)}</script>'
        + f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _ends(metrics: Sequence[Record], last_steps: int) -> str:
    rows = changes(metrics, [name for name, *_ in _TABLE])
    forms = {name: (label, form) for name, label, form in _TABLE}
    held = any(row.held_out is not None for row in rows)
    last = f"last {last_steps:,} steps" if last_steps > 1 else "last step"
    heads = ["first step", last, *(["held out, last"] if held else [])]
    lines = ["<tr><th></th>" + "".join(f'<th class="number">{head}</th>' for head in heads) + "</tr>"]
    for row in rows:
        label, form = forms[row.name]
        values = [row.first, row.last, *([row.held_out] if held else [])]
        cells = "".join(f'<td class="number">{_number(form, value)}</td>' for value in values)
        lines.append(f'<tr><td class="name">{label}</td>{cells}</tr>')
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _number(form: str, value: float | None) -> str:
    return "–" if value is None else written(form, value).replace("-", "−")


def _run(facts: Record) -> list[tuple[str, str]]:
    """The rows of the facts table: all of train.json but the settings and the last metrics."""
    left_out = {"settings", "final"}
    return [(name, _said(value)) for name, value in facts.items() if name not in left_out]


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(_said(one) for one in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [
        f'<tr><td class="name">{_html(name.replace("_", " "))}</td><td>{_html(value)}</td></tr>'
        for name, value in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def _html(value: Any) -> str:
    return escape(safe(str(value)))


def _json(document: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(document).replace("<", "\\u003c")
