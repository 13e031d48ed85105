"""Fitting pictures: reading and writing them, pixel batches on the device, the model, its evaluation."""
