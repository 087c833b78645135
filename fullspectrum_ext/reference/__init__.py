"""Every operator once more in plain torch: the definition of right, for tests and benchmarks."""
