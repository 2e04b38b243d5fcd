"""Mutations of the package, and what kills them. See run.py."""
