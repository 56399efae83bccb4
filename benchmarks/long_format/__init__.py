"""Long format, and what users write without it: `python -m benchmarks.long_format`."""
