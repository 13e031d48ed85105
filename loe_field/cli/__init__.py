"""The commands of this package beside nerfstudio's: thin, the work is done elsewhere."""
