"""Training of every method: the Trainer, its step, checkpoints, optimizers' configs, the run's record."""
