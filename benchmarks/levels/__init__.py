"""Simulations of every claimed level, a module for each family of numbers: ``benchmarks/calibration.py`` runs them."""
