"""Shipped recipes of fine-tuning."""
