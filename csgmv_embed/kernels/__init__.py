"""The Triton kernels, and nothing else: what they compute is said in each file, who may call them in the op's.

A kernel takes pointers, then counts that change from call to call, then one constant `c`: a NamedTuple with all that is
compiled in, which the kernel's file defines. M, N and K are the axes of a product: rows, columns, what is summed over.
"""
