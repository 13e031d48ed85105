"""Many fits: a child process for each, series of pictures, suites of experiments, their reports."""
