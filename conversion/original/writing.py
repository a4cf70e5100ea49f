"""A supernet written as a file that the original loads."""

from collections import OrderedDict
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining
from lighthubert_hf.conversion.checkpoints.errors import ConversionError, first_line, listed
from lighthubert_hf.conversion.checkpoints.reading import folder_weights, read_json
from lighthubert_hf.conversion.layout.supernet import Layout, check_layout

from .config import write_config
from .names import to_original


def layout_supernet(folder: Path) -> Layout:
    """The supernet in `folder`, laid out as it is.

    Raises:
        FileNotFoundError, ConversionError: if there is none, or its files do not belong together.
    """
    data = read_json(folder / "config.json")
    if data.get("model_type") != LightHubertConfig.model_type:
        raise ConversionError(f"{folder} holds a {data.get('model_type')!r} model, not a LightHuBERT supernet")
    if data.get("search_space") is None:
        raise ConversionError(f"{folder} holds a static subnet; only supernets can be written as the original's files")
    try:
        config = LightHubertConfig.from_dict(data)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"{folder / 'config.json'}: {first_line(error)}") from None
    audio = read_json(folder / "preprocessor_config.json")
    wrong = [
        name for name, kind in (("do_normalize", bool), ("sampling_rate", int)) if type(audio.get(name)) is not kind
    ]
    if wrong:
        raise ConversionError(f"{folder / 'preprocessor_config.json'} does not say {listed(wrong)}")
    weights = folder_weights(folder)
    prefix = f"{LightHubertForPreTraining.base_model_prefix}."
    return Layout(
        kind="LightHuBERT supernet",
        config=config,
        weights=weights,
        names={name.removeprefix(prefix): name for name in weights},
        dropped=(),
        do_normalize=audio["do_normalize"],
        sampling_rate=audio["sampling_rate"],
    )


def write_original(layout: Layout, path: Path) -> tuple[dict, int]:
    """Write a supernet as `{"cfg": {"model": …, "task": …}, "model": weights}`.

    Returns:
        `cfg.model` and the number of parameters.

    Raises:
        ConversionError: if the original cannot hold it.
    """
    config = layout.config
    shapes = check_layout(layout)
    cfg = write_config(
        config,
        do_normalize=layout.do_normalize,
        sampling_rate=layout.sampling_rate,
        names=layout.names,
        where=layout.weights.where,
    )
    style = {"num_hidden_layers": config.num_hidden_layers, "feat_extract_norm": config.feat_extract_norm}
    # Each tensor is copied: in a safetensors file all share one storage, which torch.save would keep together.
    weights = OrderedDict((to_original(name, **style), layout.tensor(name).clone()) for name in layout.names)
    with path.open("wb") as file:  # by name torch.save tells less of what fails
        torch.save({"cfg": cfg, "model": weights}, file)
    return cfg["model"], sum(torch.Size(shape).numel() for shape in shapes.values())
