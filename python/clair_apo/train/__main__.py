"""`python -m clair_apo.train`: what `accelerate launch` starts, with the flags of `clair-apo train`."""

from __future__ import annotations

import sys

from clair_apo.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
