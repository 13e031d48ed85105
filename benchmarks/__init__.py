"""How speed and memory are measured; `results` holds what was measured, with its provenance."""
