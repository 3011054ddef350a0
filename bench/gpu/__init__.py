"""Measures the GPU's kernels. Each file is a program of its own, `python -m bench.gpu.attention`, and needs torch,
triton, numpy and safetensors only. Without a GPU it runs small cases on Triton's interpreter, and says how far the
results are from float64 or from the reference.
"""

import os

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # before anything loads Triton
    os.environ["TRITON_INTERPRET"] = "1"
