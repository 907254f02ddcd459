"""The end of a run: numbers that a person can check, and what to do about the failed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clair_apo.build.options import BuildOptions, Tables
from clair_apo.build.progress import usd
from clair_apo.build.results import Counts
from clair_apo.build.roles import judges
from clair_apo.llm.chat import WAY_FAILED
from clair_apo.llm.ledger import Spent
from clair_apo.terminal import duration

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
    "unparsable": "the reply has no readable revision or verdict; see `raw`, perhaps another template",
    "context_length": "the texts are longer than the model's context; another model, or drop them",
    "invalid_reply": "the server did not answer as the API says; see `raw`",
}


def as_json(
    tables: Mapping[str, Counts],
    spent: Sequence[Spent],
    cost: float | None,
    from_ledger: int,
    seconds: float,
    settings: dict[str, Any],
    version: str,
    *,
    judged: bool,
) -> dict[str, Any]:
    """`summary.json`. `tables` are the counts by method; at the top stand their sums. Calls, tokens, cost
    (USD; None: a price is not known) and retries are totals over the life of the run folder;
    `calls_from_ledger` and `seconds` belong to this start. `calls_counted_here` is the number of calls
    whose tokens the server did not tell. `judged`: this start has judges."""
    whole = Counts()
    for counts in tables.values():
        whole.add(counts)
    calls_of_judges = sum(item.calls for item in spent if judges([item.role]))
    return {
        **_counts(whole),
        "methods": {
            name: {**_counts(counts), **({"judge": counts.judged.json()} if judged else {})}
            for name, counts in tables.items()
        },
        **({"judge": whole.judged.json(calls_of_judges)} if judged else {}),
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


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "rows_in": counts.rows_in,
        "kept": counts.kept,
        "unchanged": counts.unchanged,
        "filtered": counts.filtered,
        "failed": counts.failed,
        "waiting": counts.waiting,
        "failures": dict(sorted(counts.failures.items())),
        "flags": dict(sorted(counts.flags.items())),
    }


def as_text(summary: dict[str, Any], options: BuildOptions) -> str:
    """The same for people."""
    lines: list[str] = []
    for method, counts in summary["methods"].items():
        if len(summary["methods"]) > 1:
            lines += ([""] if lines else []) + [method]
        lines += _table_lines(counts, options.tables(method))
    if len(summary["methods"]) > 1:
        lines.append("")
    if "judge" in summary:
        lines += _judge_lines(summary["judge"])
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


def _table_lines(counts: Mapping[str, Any], tables: Tables) -> list[str]:
    """Where the rows of one method went."""
    width = len(f"{counts['rows_in']:,}")
    lines = [f"{counts['rows_in']:>{width},} rows in"]

    def line(name: str, note: str = "") -> None:
        lines.append(f"{counts[name]:>{width},} {name}" + (f"  {note}" if note else ""))

    line("kept", f"→ {tables.pairs}")
    line("unchanged", f"→ {tables.dropped}" if counts["unchanged"] else "")
    line("filtered", f"→ {tables.dropped}" if counts["filtered"] else "")
    line("failed", f"→ {tables.failures}" if counts["failed"] else "")
    if counts["waiting"]:
        line(
            "waiting", "for replies from batches: the tables hold the others until --batch collect has them"
        )
    for kind, count in sorted(counts["failures"].items(), key=lambda item: -item[1]):
        lines.append(f"{'':{width}}   {count:,} {kind}: {ADVICE[kind]}")
    if counts["flags"]:
        flags = ", ".join(f"{name} {count:,}" for name, count in counts["flags"].items())
        lines.append(f"flags: {flags}")
    return lines


def _judge_lines(judge: Mapping[str, Any]) -> list[str]:
    """What the judges found, and what is to be held of them."""
    if not judge["comparisons"]:
        return ["judge: no two answers were compared"]
    without = sum(judge["no_verdict"].values())
    lines = [
        f"judge: {judge['comparisons']:,} comparisons, {judge['decided']:,} with a winner, "
        f"{judge['tied']:,} tied, {judge['disagreements']:,} in disagreement"
        + (f"; {judge['abstentions']:,} abstentions" if judge["abstentions"] > without else "")
    ]
    if without:
        told = ", ".join(f"{kind} {count:,}" for kind, count in judge["no_verdict"].items())
        lines.append(
            f"  {without:,} without a verdict ({told}): such pairs have the flag not_verified; "
            "--retry-failed asks the judge once more"
            + (
                ", and a higher --judge-max-tokens all of it anew (--continue)"
                if "truncated" in judge["no_verdict"]
                else ""
            )
        )
    for name, places in judge["judges"].items():
        if places["first_position_share"] is None:
            continue
        lines.append(
            f"  {name}: {places['first_position_share']:.1%} of its verdicts are for the first place, "
            f"position bias {places['position_bias']:+.3f}, {places['ties']:,} ties"
        )
    if judge["rating_agreement"] is not None:
        lines.append(
            f"  agrees with the ratings in {judge['rating_agreement']:.1%} of "
            f"{judge['rated_comparisons']:,} comparisons"
        )
    for name, places in judge["judges"].items():
        if places["biased"]:
            where = "first" if places["position_bias"] > 0 else "second"
            lines.append(
                f"WARNING: the judge {name} favours the answer that stands {where}, whatever it says "
                f"(position bias {places['position_bias']:+.2f}); an answer wins only if it does in both "
                "orders, so little of what this judge says counts."
            )
    return lines
