"""Shipped recipes of distillation."""
