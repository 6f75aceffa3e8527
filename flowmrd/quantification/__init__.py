"""Counts become measurements: fraction, interval, limits of the sample, category."""
