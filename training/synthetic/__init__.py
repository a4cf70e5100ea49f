"""Synthetic speech: corpora and tasks from nothing."""
