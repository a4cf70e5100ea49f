"""`lighthubert …`: parses, then calls. Each command's code is imported when it runs, so `--help` needs no torch."""

from . import models, publishing, searching, training, transcribing, units
from .app import app, main

__all__ = ["app", "main", "models", "publishing", "searching", "training", "transcribing", "units"]
