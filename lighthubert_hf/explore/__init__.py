"""Looking instead of reading: a page of a search or of a distillation run, for any browser and without a network."""

from .pages import write_page, write_space
from .serving import serve

__all__ = ["serve", "write_page", "write_space"]
