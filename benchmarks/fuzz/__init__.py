"""What a node does with input that nobody would send: see `python -m benchmarks.fuzz --help`."""
