"""One pass of the optimiser over all it has: `naive.py` in torch, `fused.py` in Triton."""
