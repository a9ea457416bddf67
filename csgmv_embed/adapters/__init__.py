"""LoRA adapters as PEFT saves them: what a configuration and each tensor mean, and a converter to plain ones."""
