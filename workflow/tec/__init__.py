"""Temporal Expert Caching: patch, build, measure, check and report."""

__version__ = "0.1.0"
