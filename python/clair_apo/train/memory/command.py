"""`clair-apo train --plan`: what runs behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clair_apo.errors import UsageError
from clair_apo.progress import print_json
from clair_apo.train import attention, launch
from clair_apo.train.load import load_tokenizer
from clair_apo.train.memory.account import Spread
from clair_apo.train.memory.model import read_config
from clair_apo.train.memory.plan import MemoryPlan, find_room, plan_memory
from clair_apo.train.memory.show import text
from clair_apo.train.objectives import Objective, ObjectiveOptions
from clair_apo.train.packing import packed_tokens
from clair_apo.train.tokens import TokenPairs, tokenise
from clair_apo.train.view import View

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions


def run_plan(options: TrainOptions) -> int:
    """Prints the plan; of several processes the first one does. Returns 0.

    Raises: ClairError, behind the plan itself, where not even one pair fits.
    """
    if int(os.environ.get("RANK", "0")):
        return 0
    plan = plan_of(options)
    if options.json:
        print_json(plan.document())
    else:
        print(text(plan))
    sys.stdout.flush()
    plan.check()
    return 0


def plan_of(options: TrainOptions) -> MemoryPlan:
    """The plan of a run of `options`, with its config and pairs read, and no weights."""
    config = read_config(options.model)
    processes = options.plan or int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 and options.sharding != "auto":
        raise UsageError(f"--sharding {options.sharding} needs several processes: --plan N says how many")
    spread = Spread(processes, processes > 1 and launch.wants_shards(options))
    longest, sequence = _longest(options, config)
    return plan_memory(options, config, longest, find_room(options.plan_memory), spread, sequence)


def _longest(options: TrainOptions, config: Any) -> tuple[int, int]:
    """Tokens of the longest pair, held-out ones among them, and of the longest prompt with an answer;
    without pairs, of the longest that could be: two whole answers behind a prompt of one token."""
    if not options.pairs:
        return 2 * options.max_length - 1, options.max_length
    unpaired = options.objective != "auto" and Objective(ObjectiveOptions.of(options)).unpaired
    tokenizer = load_tokenizer(options.model)
    tables = []
    for file in filter(None, (options.pairs, options.eval_pairs)):
        with View(quiet=options.quiet).bar("tokens") as advance:
            found = tokenise(
                file,
                tokenizer,
                max_length=options.max_length,
                max_prompt_length=options.max_prompt_length,
                unpaired=unpaired,
                plain_text=options.plain_text,
                on_progress=advance,
            )
        tables.append(found.pairs)
    sequence = max(longest_sequence(table) for table in tables)
    return longest_packed(tables, options, config, sequence), sequence


def longest_sequence(pairs: TokenPairs) -> int:
    """Tokens of the longest prompt with an answer."""
    lengths = pairs.lengths()
    return int((lengths[:, 0] + lengths[:, 1:].max(1)).max())


def longest_packed(tables: Sequence[TokenPairs], options: TrainOptions, config: Any, longest: int) -> int:
    """Tokens that the longest pair takes in a microbatch; `longest`: those of its prompt and longer
    answer."""
    share = not options.no_share and attention.shares(config, longest) is None
    return max(packed_tokens(table[i], share=share) for table in tables for i in range(len(table)))
