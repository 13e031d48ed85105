"""What every method of this package trains with: the Trainer, checkpoints, optimizers' configs, the run's record."""
