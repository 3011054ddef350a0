"""Device of these tests: Triton's interpreter, or the GPU if there is one."""

import torch

from engine.kernels.triton.kernels import is_interpreted

INTERPRETED = is_interpreted()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
MORE = 1 if INTERPRETED else 8
"""So many times as many random cases: the interpreter takes a second for each, a GPU none."""
