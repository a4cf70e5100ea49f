"""Features of audio that is still being recorded: see `StreamingEncoder`."""

from .encoder import StreamingEncoder

__all__ = ["StreamingEncoder"]
