"""What CTC asks of a transcript."""

from itertools import pairwise


def frames_needed(labels: list[int]) -> int:
    """Fewest frames CTC can align `labels` to: one a label, and a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))
