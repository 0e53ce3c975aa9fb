"""Models: loading, the tiny models, LoRA, mixtures of experts, vision."""
