"""The one error of this folder."""

from huggingface_hub.errors import StrictDataclassError


class ConversionError(ValueError):
    """A checkpoint cannot be converted. The message is one line: what is wrong, what is allowed, the remedy."""


def listed(names, limit: int = 8) -> str:
    """Names for an error message: the first few, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__  # the config's own message; around it stands which validator raised it
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
