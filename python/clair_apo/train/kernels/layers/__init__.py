"""The small operations between a layer's products: RMSNorm, RoPE, and the gate of its MLP.

`naive.py` says what they are, `norm.py`, `rope.py` and `swiglu.py` are the kernels, and `install.py` puts
these into a model that has checked that they are its own modules' equals.
"""
