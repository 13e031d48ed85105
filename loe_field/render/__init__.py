"""A fitted picture at any size, through any window, and its derivatives."""
