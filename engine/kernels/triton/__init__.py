"""The kernels for GPUs, in Triton. The parts that need no GPU are tested without one."""
