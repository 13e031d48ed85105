"""nerfstudio's four classes, for any signal: data manager, model, pipeline and trainer."""
