"""Probes: what a model does."""
