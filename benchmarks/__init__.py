"""Measurements, never tests: `python -m benchmarks.NAME --json` prints one object. Figures: benchmarks/README.md."""
