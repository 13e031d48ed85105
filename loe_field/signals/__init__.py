"""Signals: coordinates and targets of a fit, its measures and its files."""
