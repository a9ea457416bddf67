"""Checks a whole model's answers: logprobs and text of served LoRA adapters against Hugging Face and PEFT."""
