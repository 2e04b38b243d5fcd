"""Parts of benchmarks/smoothness.py."""
