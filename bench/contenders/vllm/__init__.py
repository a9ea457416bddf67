"""Contenders that drive vLLM's own kernels, from the installed package."""
