"""`lighthubert …`: parses, then calls. Each command's code is imported when it runs, so `--help` needs no torch."""

from . import exploring, models, publishing, searching, training, transcribing, units
from .app import app, main

__all__ = ["app", "exploring", "main", "models", "publishing", "searching", "training", "transcribing", "units"]
