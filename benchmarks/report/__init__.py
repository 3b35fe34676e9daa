"""From result files to the tables and pictures of the benchmarks."""
