"""Offline metrics of the `evaluate` family."""
