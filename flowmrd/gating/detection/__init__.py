"""Rare blasts among candidates: a normal reference, scores against it, and groups grown inside the sample."""
