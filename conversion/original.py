"""The original's checkpoints, and fairseq's HuBERT which they descend from: to a supernet, and a supernet back to them."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet

from .checkpoint_reading import MappedWeights, folder_weights, read_json, read_torch_file, torch_weights
from .checkpoint_writing import check_free, file_written_beside
from .errors import ConversionError, listed
from .original_config import FAIRSEQ_HUBERT, STAGE_1, STAGE_2, Settings, kind_of, published_space, read_config, write_config
from .original_names import HEAD, UnknownNameError, from_original, to_original
from .spaces import default_space
from .supernet import Layout, check_layout

_KINDS = {
    STAGE_1: "original LightHuBERT, stage 1",
    STAGE_2: "original LightHuBERT",
    FAIRSEQ_HUBERT: "fairseq HuBERT",
}


def layout_original(path: Path, space: SearchSpace | None = None) -> tuple[Layout, Mapping]:
    """Lay out the conversion of a `.pt` of the original or of fairseq's pre-trained HuBERT.

    Args:
        path: the file.
        space: its search space; by default what the checkpoint says, or for a HuBERT one of its size.

    Returns:
        The layout, and the settings of the model in the checkpoint's own terms (`cfg.model`).

    Raises:
        FileNotFoundError, ConversionError: if it cannot be read or holds something else.
    """
    checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        raise ConversionError(f'{path} holds no {{"cfg": …, "model": weights}}; is it another kind of checkpoint?')
    model, task = (Settings(checkpoint.get("cfg"), section) for section in ("model", "task"))
    kind = kind_of(model)
    weights = torch_weights(path, "model")
    names, dropped = _names(weights)
    _check_layers(model, weights, names)
    config = _config(model, kind, space, _target_size(model, kind, weights, names))
    layout = Layout(
        kind=_KINDS[kind],
        config=config,
        weights=weights,
        names=names,
        dropped=dropped,
        do_normalize=task.get("normalize", bool),
        sampling_rate=task.get("sample_rate", int, 16000),
        trained_subnets=kind == STAGE_2,
    )
    return layout, dict(model.values)


def _names(weights: MappedWeights) -> tuple[dict[str, str], tuple[str, ...]]:
    """The checkpoint's names by ours, and those dropped on purpose; every name is accounted for."""
    names, dropped, unknown = {}, [], []
    for name in weights:
        try:
            ours = from_original(name)
        except UnknownNameError:
            unknown.append(name)
            continue
        if ours is None:
            dropped.append(name)
        elif ours in names:
            raise ConversionError(f"{weights.where} has one weight twice: {names[ours]} and {name}")
        else:
            names[ours] = name
    if unknown:
        raise ConversionError(f"{weights.where} has weights unknown in a pre-trained HuBERT: {listed(unknown)}")
    return names, tuple(dropped)


def _check_layers(model: Settings, weights: MappedWeights, names: Mapping[str, str]) -> None:
    """The number of layers, before a model of so many is built to compare shapes with."""
    found = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    wanted = model.size("encoder_layers")
    if len(found) != wanted:
        raise ConversionError(f"{weights.where} has weights of {len(found)} layers, cfg.model.encoder_layers says {wanted}")


def _target_size(model: Settings, kind: str, weights: MappedWeights, names: Mapping[str, str]) -> int:
    """Channels of the distillation target. Only one prediction from the last layer is supported, or none."""
    width = model.size("encoder_embed_dim")
    if kind == FAIRSEQ_HUBERT:
        return width
    layers = model.size("encoder_layers")
    heads = model.get("layer_pred_num", str).split(",")
    last_only, none = ["0"] * (layers - 1) + ["1"], ["0"] * layers
    if heads not in (last_only, none):
        raise ConversionError(
            f"cfg.model.layer_pred_num is {','.join(heads)!r}: only one prediction from the last of {layers} layers, or "
            "none, is supported"
        )
    expected = to_original(HEAD, num_hidden_layers=layers, feat_extract_norm="layer") if heads == last_only else None
    if names.get(HEAD) != expected:
        raise ConversionError(
            f"{weights.where} has the prediction head {names.get(HEAD)}, cfg.model.layer_pred_num says {expected}"
        )
    return model.size("teacher_embed_dim") if expected else width


def _config(model: Settings, kind: str, space: SearchSpace | None, target_size: int) -> LightHubertConfig:
    width, heads = model.size("encoder_embed_dim"), model.size("encoder_attention_heads")
    if kind == FAIRSEQ_HUBERT and width % heads:
        raise ConversionError(f"cfg.model: {heads} encoder_attention_heads do not divide encoder_embed_dim {width}")
    if kind != FAIRSEQ_HUBERT and heads * 64 != width:
        raise ConversionError(
            f"cfg.model: LightHuBERT's heads have 64 channels, {heads} encoder_attention_heads do not make up "
            f"encoder_embed_dim {width}"
        )
    if space is None and kind == FAIRSEQ_HUBERT:
        space = default_space(
            num_attention_heads=heads,
            head_dim=width // heads,
            intermediate_size=model.size("encoder_ffn_embed_dim"),
            num_hidden_layers=model.size("encoder_layers"),
            groups=model.size("conv_pos_groups"),
        )
    elif space is None:
        space = published_space(model, kind)
        if max(space.hidden_size) > width:
            raise ConversionError(
                f"the checkpoint names a published search space, up to {max(space.hidden_size)} wide, but its weights "
                f"are {width} wide; pass its own space with --search-space FILE"
            )
    return read_config(
        model,
        head_dim=width // heads,
        # The original has the setting and never applies it.
        attention_dropout=model.get("attention_dropout", float, 0.1) if kind == FAIRSEQ_HUBERT else 0.0,
        space=space,
        default_subnet=space.default() if kind == STAGE_2 else space.largest(),
        target_size=target_size,
    )


def write_original(folder: Path, output: Path) -> tuple[int, list[str]]:
    """Write the supernet in `folder` as a file that the original loads.

    Returns:
        The number of its parameters and the names of its weights in the file.

    Raises:
        FileNotFoundError, ConversionError: if there is no supernet in `folder`, or the original cannot hold it.
    """
    config = supernet_config(folder)
    layout = supernet_layout(folder, config)
    shapes = check_layout(layout)
    cfg = write_config(
        config, do_normalize=layout.do_normalize, sampling_rate=layout.sampling_rate, names=layout.names
    )
    style = {"num_hidden_layers": config.num_hidden_layers, "feat_extract_norm": config.feat_extract_norm}
    # Each tensor is copied: in a safetensors file they share one storage, which torch.save would keep whole.
    weights = OrderedDict((to_original(name, **style), layout.tensor(name).clone()) for name in layout.names)
    torch.save({"cfg": cfg, "model": weights}, output)
    return sum(torch.Size(shape).numel() for shape in shapes.values()), list(weights)


def supernet_config(folder: Path) -> LightHubertConfig:
    """The config of the supernet in `folder`."""
    data = read_json(folder / "config.json")
    if data.get("model_type") != LightHubertConfig.model_type:
        raise ConversionError(f"{folder} holds a {data.get('model_type')!r} model, not a LightHuBERT supernet")
    if data.get("search_space") is None:
        raise ConversionError(f"{folder} holds a static subnet; only supernets can be written as the original's files")
    return LightHubertConfig.from_dict(data)
