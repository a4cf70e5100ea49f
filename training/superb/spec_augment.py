"""SpecAugment on features: time warping, masks of time and of channels (Park et al., https://arxiv.org/abs/1904.08779)."""

import torch
from torch.nn import functional as F

# As SUPERB sets them for recognition and slot filling.
WARP = 5
TIME_MASKS, TIME_WIDTH = 2, 40
CHANNEL_MASKS, CHANNEL_WIDTH = 4, 50


def spec_augment(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """A distorted copy. Draws from torch's global generator.

    Masks are filled with zeros. Those of time cover at most a quarter of a recording each, those of channels an
    eighth of the channels, so that short recordings and narrow models (which SUPERB does not have) keep something.

    Args:
        features: `(rows, frames, channels)`.
        lengths: `(rows,)`, valid frames.
    """
    rows = [_warped(row[:length], WARP) for row, length in zip(features, lengths.tolist(), strict=True)]
    augmented = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    augmented = F.pad(augmented, (0, 0, 0, features.shape[1] - augmented.shape[1]))
    time = _masks(lengths.cpu(), features.shape[1], TIME_MASKS, TIME_WIDTH, share=4)
    channels = torch.full((len(features),), features.shape[2])
    channel = _masks(channels, features.shape[2], CHANNEL_MASKS, CHANNEL_WIDTH, share=8)
    hidden = time[:, :, None] | channel[:, None, :]
    return augmented.masked_fill(hidden.to(features.device), 0.0)


def _warped(row: torch.Tensor, window: int) -> torch.Tensor:
    """One recording `(frames, channels)` whose parts before and after a random frame are stretched or squeezed."""
    frames = len(row)
    if frames <= 2 * window + 2:
        return row
    centre = int(torch.randint(window + 1, frames - window, ()))
    moved = centre + int(torch.randint(-window, window + 1, ()))
    parts = [(row[:centre], moved), (row[centre:], frames - moved)]
    return torch.cat(
        [F.interpolate(part.T[None], size, mode="linear", align_corners=False)[0].T for part, size in parts]
    )


def _masks(sizes: torch.Tensor, longest: int, number: int, width: int, share: int) -> torch.Tensor:
    """`(rows, longest)`, true in `number` spans of up to `width` places within each row's `sizes`."""
    widths = (torch.rand(len(sizes), number) * (torch.clamp(sizes // share, max=width) + 1)[:, None]).long()
    starts = (torch.rand(len(sizes), number) * (sizes[:, None] - widths + 1)).long()
    place = torch.arange(longest)
    return ((place >= starts[..., None]) & (place < (starts + widths)[..., None])).any(1)
