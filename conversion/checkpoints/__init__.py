"""Checkpoint files: read without running anything in them, written tensor by tensor."""
