"""Pictures in nerfstudio: their configs, the plane in the viewer, a run read back."""
