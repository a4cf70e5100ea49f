"""Shipped recipes of several stages of distillation in a row."""
