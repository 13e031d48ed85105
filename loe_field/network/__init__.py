"""The layer, its kernels and its optimizer: torch alone."""
