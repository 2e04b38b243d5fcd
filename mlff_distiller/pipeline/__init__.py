"""The line over all stations: structures -> labels -> student -> engines -> report."""
