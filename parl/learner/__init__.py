"""The learner: batches, losses, the optimizer step, checkpoints. The first place where tensors appear."""
