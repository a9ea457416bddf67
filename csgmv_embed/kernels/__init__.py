"""The Triton kernels and nothing else. Each file says what its kernels compute; the ops say who may call them.

A kernel takes pointers, then counts that change from call to call, then one constant `c`: a NamedTuple of everything
that is compiled in, defined in the kernel's file. M, N and K are the axes of a product: rows, columns and the summed
axis.
"""
