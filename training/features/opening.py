"""The encoder and the data set that a command over a whole data set is given."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lighthubert_hf.devices import choose_device
from lighthubert_hf.hub.card import is_hub_id
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.superb.upstream import Upstream, load_upstream

EncoderOrName = str | Path | PreTrainedModel | Upstream


def open_encoder(
    model: EncoderOrName,
    *,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    device: str | torch.device | None = None,
) -> Upstream:
    """The frozen encoder of a folder or Hub id, or a live one, on a device: by default a GPU if there is one.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a subnet that does not fit, or no such device.
    """
    place = choose_device(device)
    upstream = load_upstream(model, revision=revision, subnet=subnet)
    upstream.model.to(place)
    return upstream


def as_source(data: Any, **options: Any) -> AudioSource:
    """A data set by its folder, Hub id, files or `datasets.Dataset`, or an `AudioSource` as it is.

    Args:
        options: of `AudioSource`; those that are `None` keep their default.
    """
    if isinstance(data, AudioSource):
        return data
    data = str(data) if isinstance(data, Path) else data
    return AudioSource(data, **{name: value for name, value in options.items() if value is not None})


def shown(name: str | None) -> str | None:
    """What readers elsewhere are told of a model or data set: a Hub id as it is, of a path its last name."""
    if name is None or (is_hub_id(name) and not Path(name).exists()):
        return name
    return Path(name).name or name
