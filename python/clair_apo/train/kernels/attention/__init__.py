"""Attention over shared prefixes on a CPU, in Rust (`rust/attention`), by the threads of PyTorch.

`blocks.py` is the operation, `team.py` the threads. Its truth is `clair-plain` in `train/attention.py`."""
