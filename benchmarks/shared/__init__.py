"""What the benchmarks share: clocks and memory, the models that they build."""
