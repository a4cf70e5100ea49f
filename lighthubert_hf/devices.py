"""The device that a user names."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device(name: "str | torch.device | None" = None) -> "torch.device":
    """A device that can compute; by default a GPU if there is one.

    Raises:
        ValueError: if there is no such device here. One line, with what there is.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not built in, not there, no data
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        usable = ", ".join(["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
        raise ValueError(f"the device {str(name)!r} cannot be used ({reason}); here there is {usable}") from None
    return device
