"""Tests of the kernels on Triton's interpreter.

The interpreter must be selected before Triton is imported, so these tests run in a separate process, which
tests/engine/kernels/triton/test_interpreted.py starts. With a GPU, `pytest tests/interpreter` runs the same cases
compiled, on the GPU.
"""

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
