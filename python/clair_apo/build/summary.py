"""The end of a run: numbers that a person can check, and what to do about the failed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clair_apo.build.options import BuildOptions
from clair_apo.build.progress import duration, usd
from clair_apo.build.results import Counts
from clair_apo.llm.chat import WAY_FAILED
from clair_apo.llm.ledger import Spent

ADVICE = {
    "input": "mend the rows in the input; the message names file, row and column",
    "http_4xx": "the server does not accept the request; the message has its words",
    "http_5xx": "the server failed; run the same command again",
    "rate_limited": "the server allows fewer calls; run again, with a lower --concurrency",
    "timeout": "run again, with a larger --timeout or a lower --concurrency",
    "connection": "run the same command again once the server can be reached",
    "refusal": "the model declines; --retry-failed asks once more",
    "empty": "nothing came back; --retry-failed asks once more",
    "truncated": "cut off at the token limit; a higher --max-tokens (--model-max-tokens for the model's "
    "own answers) asks every row anew (--continue)",
    "content_filter": "the server's filter stopped it; another server may not",
    "unparsable": "the reply has no readable revision; see `raw`, perhaps another --template",
    "context_length": "the texts are longer than the model's context; another model, or drop them",
    "invalid_reply": "the server did not answer as the API says; see `raw`",
}


def as_json(
    counts: Counts,
    spent: Sequence[Spent],
    cost: float | None,
    from_ledger: int,
    seconds: float,
    settings: dict[str, Any],
    version: str,
) -> dict[str, Any]:
    """`summary.json`. Calls, tokens, cost (USD; None: a price is not known) and retries are totals over the
    life of the run folder; `calls_from_ledger` and `seconds` belong to this start. `calls_counted_here` is
    the number of calls whose tokens the server did not tell."""
    return {
        "rows_in": counts.rows_in,
        "kept": counts.kept,
        "unchanged": counts.unchanged,
        "filtered": counts.filtered,
        "failed": counts.failed,
        "failures": dict(sorted(counts.failures.items())),
        "flags": dict(sorted(counts.flags.items())),
        "calls": sum(item.calls for item in spent),
        "calls_from_ledger": from_ledger,
        "calls_counted_here": sum(item.counted for item in spent),
        "retries": sum(item.retries for item in spent),
        "tokens_in": sum(item.tokens_in for item in spent),
        "tokens_out": sum(item.tokens_out for item in spent),
        "cost_usd": cost,
        "seconds": round(seconds, 3),
        "settings": settings,
        "version": version,
    }


def as_text(summary: dict[str, Any], options: BuildOptions) -> str:
    """The same for people."""
    width = len(f"{summary['rows_in']:,}")
    lines = [f"{summary['rows_in']:>{width},} rows in"]

    def line(name: str, note: str = "") -> None:
        lines.append(f"{summary[name]:>{width},} {name}" + (f"  {note}" if note else ""))

    line("kept", f"→ {options.output}")
    dropped = options.beside(".dropped.parquet")
    line("unchanged", f"→ {dropped}" if summary["unchanged"] else "")
    line("filtered", f"→ {dropped}" if summary["filtered"] else "")
    line("failed", f"→ {options.beside('.failures.parquet')}" if summary["failed"] else "")
    for kind, count in sorted(summary["failures"].items(), key=lambda item: -item[1]):
        lines.append(f"{'':{width}}   {count:,} {kind}: {ADVICE[kind]}")
    if summary["flags"]:
        flags = ", ".join(f"{name} {count:,}" for name, count in summary["flags"].items())
        lines.append(f"flags: {flags}")
    reused = summary["calls_from_ledger"]
    lines.append(
        f"{summary['calls']:,} calls in this folder"
        + (f", {reused:,} of them used again" if reused else "")
        + f"; {summary['tokens_in']:,} tokens in, {summary['tokens_out']:,} out"
        + (f", {summary['retries']:,} retries" if summary["retries"] else "")
        + (f"; {usd(summary['cost_usd'])}" if summary["cost_usd"] else "")
        + f"; {duration(summary['seconds'])}"
    )
    if summary["calls_counted_here"]:
        lines.append(
            f"The server told no tokens for {summary['calls_counted_here']:,} calls: counted here."
        )
    if "prompt_cut" in summary["flags"]:
        lines.append(
            f"WARNING: {summary['flags']['prompt_cut']:,} pairs were made from prompts that the server cut "
            "(flag prompt_cut); --drop prompt_cut leaves them out."
        )
    if any(kind in WAY_FAILED for kind in summary["failures"]):
        lines.append("Run the same command again to ask once more where the way failed.")
    return "\n".join(lines)
