"""Right answers from a whole model: logprobs and text of served LoRA adapters against Hugging Face and PEFT."""
