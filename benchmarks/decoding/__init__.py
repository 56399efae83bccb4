"""What a bare loop takes to decode rows and to add them: `python -m benchmarks.decoding`."""
