"""The work clock: counts of launches in Triton's interpreter, and figures of their compiled kernels."""
