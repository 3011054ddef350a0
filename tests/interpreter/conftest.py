"""Kernels on Triton's interpreter. It has to be chosen before Triton is imported, so they run in a process of their own:
tests/engine/kernels/triton/test_interpreted.py starts it."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
