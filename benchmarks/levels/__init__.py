"""Simulations of every claimed level, one module for each family of numbers; ``benchmarks/calibration.py`` runs them."""
