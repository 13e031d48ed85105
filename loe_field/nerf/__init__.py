"""Radiance fields: rays from posed pictures, the field, the model that renders it, and its training."""
