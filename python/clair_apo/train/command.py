"""`clair-apo train`: what runs behind its flags. torch comes in only here."""

from __future__ import annotations

import argparse
import os
import warnings

from clair_apo.errors import UsageError
from clair_apo.memory import keep_memory
from clair_apo.progress import print_json
from clair_apo.train.options import TrainOptions


def run_train(args: argparse.Namespace) -> int:
    """Trains as `args` say; returns the exit status."""
    options = TrainOptions.of(args)
    # Their bars and remarks would stand between our lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|peft|triton)\.")
    try:
        if options.plan is not None:
            from clair_apo.train.memory.command import run_plan

            return run_plan(options)
        import torch

        from clair_apo.train.launch import leave
        from clair_apo.train.run import train
    except ImportError as error:
        raise UsageError(f"{error}: pip install 'clair-apo[train]'") from error
    if not torch.cuda.is_available():
        keep_memory()
    result = train(options)
    leave()
    if options.json and int(os.environ.get("RANK", "0")) == 0:
        print_json(result)
    return 0
