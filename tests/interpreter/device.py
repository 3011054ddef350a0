"""Where these tests run: on Triton's interpreter, or compiled on the GPU that is there."""

import torch

from engine.kernels.triton.kernels import interpreted

INTERPRETED = interpreted()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
