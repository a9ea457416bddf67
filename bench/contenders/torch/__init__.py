"""Contenders written in torch: the base product without LoRA, and gathers."""
