"""loe-bench: suites of fits, described by a TOML file, run through the real methods, and reported."""
