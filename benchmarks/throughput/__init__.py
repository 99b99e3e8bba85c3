"""Training speed beside torchtitan's on the same GPUs: `python -m benchmarks.throughput`."""
