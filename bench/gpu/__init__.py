"""Benchmarks of the GPU kernels.

Each file is a program, `python -m bench.gpu.attention`, and needs only torch, triton, numpy and safetensors. Without a
GPU it runs small cases on Triton's interpreter, and prints how far the results are from float64 or from the reference.
"""

import os

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # before Triton is loaded
    os.environ["TRITON_INTERPRET"] = "1"
