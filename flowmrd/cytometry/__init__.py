"""Markers, compensation, display scales and acquisition checks."""
