"""The operations on a GPU, in Triton; what of them runs without one is provable without one."""
