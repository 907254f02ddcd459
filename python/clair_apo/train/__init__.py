"""APO training: pairs in, a trained model and the story of its likelihoods out."""

from __future__ import annotations

from typing import Any

__all__ = ["train_model"]


def train_model(**flags: Any) -> dict[str, Any]:
    """`clair-apo train` as a function: the same flags under the same names.

    Returns: what `train.json` in the output folder holds; with `plan` what `--plan --json` prints. Raises:
    TypeError for an unknown name, UsageError for a value that cannot be meant, ClairError where the run
    cannot go on.

        train_model(model="local:smollm2", pairs="pairs.parquet", output_dir="trained")
    """
    from clair_apo.cli import namespace
    from clair_apo.train.options import TrainOptions

    options = TrainOptions.of(namespace("train", flags))
    if options.plan is not None:
        from clair_apo.train.memory.command import plan_of

        return plan_of(options).document()
    from clair_apo.train.run import train

    return train(options)
