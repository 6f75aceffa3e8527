"""Gating templates, ways of placing gates, and the engine that evaluates them."""
