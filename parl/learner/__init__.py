"""The learner, where tensors first appear: batches, losses, the optimizer step, checkpoints."""
