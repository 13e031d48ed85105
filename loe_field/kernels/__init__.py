"""Triton kernels and their launchers: pointers, blocks and masks; no autograd. Importing a module here needs Triton."""
