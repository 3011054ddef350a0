"""Kernels on Triton's interpreter. It has to be chosen before Triton is imported, so they run in a process of their own:
tests/engine/kernels/triton/test_interpreted.py starts it. Where there is a GPU, `pytest tests/interpreter` runs the same
cases compiled, on it."""

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
