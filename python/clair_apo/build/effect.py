"""Flags that would do nothing although they say what the pairs are to be: told before anything is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clair_apo.build import templates
from clair_apo.build.endpoint_options import APIS, SAMPLING
from clair_apo.build.methods import BUILT_IN, Method
from clair_apo.build.options import BuildOptions
from clair_apo.build.roles import JUDGE, MODEL, REVISER, STRONGER
from clair_apo.errors import UsageError

_CALLED = {MODEL: "model", REVISER: "reviser", STRONGER: "stronger model", JUDGE: "judge"}
_NO_JUDGE = "no judge is asked here; --verify puts one behind any method"


def check(options: BuildOptions, methods: Sequence[Method], asks: set[str]) -> None:
    """Raises UsageError for the first flag without effect where `methods` ask the roles `asks`."""
    for flag, given, words in (
        *_about_parties(options, methods, asks),
        *_about_revisions(options, methods, asks),
        *_about_methods(options, methods),
        ("--drop not_verified", "not_verified" in options.drop and JUDGE not in asks, _NO_JUDGE),
        (
            f"--judge-template {options.judge_template}",
            bool(options.judge_template) and JUDGE not in asks,
            _NO_JUDGE,
        ),
        (
            "--api",
            options.api != APIS[0] and not options.names(*_CALLED),
            "nobody who is asked over it is named",
        ),
        ("--seed", options.seed != 0 and options.sample is None, "it is that of --sample N"),
    ):
        if given:
            raise UsageError(f"{flag}: {words}")


_Told = Iterator[tuple[str, bool, str]]  # a flag, whether it is without effect, and why


def _about_parties(options: BuildOptions, methods: Sequence[Method], asks: set[str]) -> _Told:
    """Who is named and not asked, and what is said of somebody who is not there."""
    embedded = not options.names(*_CALLED)
    for role, called in _CALLED.items():
        named, asked = options.names(role), role in asks
        if role == REVISER and not embedded:  # it answers in place of the stronger model that is not named
            asked = asked or (STRONGER in asks and not options.names(STRONGER))
        nobody = _NO_JUDGE if role == JUDGE else f"--method {_names(methods)} asks no {called}"
        yield f"--{role}", named and not asked, nobody
        for end in ("key_env", "api"):
            given = getattr(options, f"{role}_{end}") is not None
            yield f"--{role}-{_dashed(end)}", given and not named, f"it goes with --{role} or --{role}-url"
        there = asked and (role != MODEL or named or embedded)
        prefix = "" if role == REVISER else f"{role}_"
        for end in (*SAMPLING, "extra_body"):
            flag = _dashed(end)
            why = nobody
            if role == REVISER:
                others = " and ".join(f"--{other}-{flag}" for other in _CALLED if other in asks)
                why = f"it is of the reviser, and {nobody}; for others there is {others}"
            elif asked:
                why = f"no {called} is named; --{role} NAME names one"
            yield (
                f"--{_dashed(prefix)}{flag}",
                getattr(options, prefix + end) is not None and not there,
                why,
            )


def _about_revisions(options: BuildOptions, methods: Sequence[Method], asks: set[str]) -> _Told:
    words = f"it is about revisions, and --method {_names(methods)} asks for none"
    for flag, given in (
        ("--best-of", options.best_of > 1),
        ("--rounds", options.rounds > 1),
        ("--reply-format edits", options.reply_format == templates.EDITS),
        ("--template", options.template is not None),
        ("--minimality", options.minimality is not None),
    ):
        yield flag, given and REVISER not in asks, words
    neighbours = options.round_pairs == "neighbours"
    yield "--round-pairs neighbours", neighbours and options.rounds == 1, "it goes with --rounds N"


def _about_methods(options: BuildOptions, methods: Sequence[Method]) -> _Told:
    """What the methods take of the input. What one of the user's own takes is not known."""
    if any(method.name not in BUILT_IN for method in methods):
        return
    names = _names(methods)
    own = max(method.own_answers(options.samples) for method in methods)
    picks = any(JUDGE in method.may_ask for method in methods)
    several = f"--method {names} takes at most one answer of the model's own"
    theirs = f"--method {names} takes no answers of other models; off-policy-judge does"
    for flag, given, effect, words in (
        (
            "--response-column",
            options.response_column,
            own > 0,
            f"--method {names} takes no answer of the model's own",
        ),
        ("--more-response-columns", options.more_response_columns, own > 1, several),
        ("--samples", options.samples != 2, own > 1, several),
        ("--answers-column", options.answers_column, picks, theirs),
        ("--answer-columns", options.answer_columns, picks, theirs),
        ("--pick", options.pick, picks, theirs),
    ):
        yield flag, bool(given) and not effect, words


def _names(methods: Sequence[Method]) -> str:
    return ", ".join(method.name for method in methods)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
