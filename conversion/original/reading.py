"""The original's checkpoints, and those of fairseq's HuBERT from which they descend, laid out as supernets."""

from collections.abc import Mapping
from pathlib import Path

from lighthubert_hf import LightHubertConfig, SearchSpace
from lighthubert_hf.conversion.checkpoints.errors import ConversionError, listed
from lighthubert_hf.conversion.checkpoints.reading import MappedWeights, read_torch_file, torch_weights
from lighthubert_hf.conversion.checkpoints.recognition import refuse_foreign
from lighthubert_hf.conversion.layout.spaces import default_space
from lighthubert_hf.conversion.layout.supernet import HEAD, Layout
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .config import FAIRSEQ_HUBERT, STAGE_1, STAGE_2, Settings, kind_of, published_space, read_original_config
from .names import UnknownNameError, from_original, to_original

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
    cfg = checkpoint.get("cfg") if isinstance(checkpoint, Mapping) else None
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get("model"), Mapping):
        refuse_foreign(path)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        refuse_foreign(path)
        raise ConversionError(f'{path} holds no {{"cfg": …, "model": weights}}; is it another kind of checkpoint?')
    model, task = (Settings(cfg, section) for section in ("model", "task"))
    kind = kind_of(model)
    predicts = _predicts(model, kind)
    weights = torch_weights(path, checkpoint["model"])
    names, dropped = _names(weights)
    _check_layers(model, weights, names)
    config = _config(model, kind, space, _target_size(model, predicts, weights, names))
    normalize, sampling_rate = task.get("normalize", bool), task.size("sample_rate", SAMPLING_RATE)
    layout = Layout(
        kind=_KINDS[kind],
        config=config,
        weights=weights,
        names=names,
        dropped=dropped,
        do_normalize=normalize,
        sampling_rate=sampling_rate,
        trained_subnets=kind == STAGE_2,
        notes=tuple(_note(settings) for settings in (model, task) if settings.defaults),
    )
    return layout, dict(model.values)


def _note(settings: Settings) -> str:
    taken = ", ".join(f"{name}={value}" for name, value in settings.defaults.items())
    return f"{settings.section} does not say, so the default was taken: {taken}"


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
        raise ConversionError(
            f"{weights.where} has weights of {len(found)} layers, cfg.model.encoder_layers says {wanted}"
        )


def _predicts(model: Settings, kind: str) -> bool:
    """Whether there is a prediction head. Only one, on the last layer, is supported."""
    if kind == FAIRSEQ_HUBERT:
        return False
    layers = model.size("encoder_layers")
    heads = model.get("layer_pred_num", str)
    last_only, none = ",".join(["0"] * (layers - 1) + ["1"]), ",".join(["0"] * layers)
    if heads not in (last_only, none):
        raise ConversionError(
            f"cfg.model.layer_pred_num is {heads[:80]!r}; supported: one prediction from the last of {layers} layers, "
            "or none"
        )
    return heads == last_only


def _target_size(model: Settings, predicts: bool, weights: MappedWeights, names: Mapping[str, str]) -> int:
    """Channels of the distillation target; without a prediction head those of the model itself."""
    if predicts != (HEAD in names):
        raise ConversionError(
            f"{weights.where} has {'a' if HEAD in names else 'no'} prediction head, cfg.model.layer_pred_num says "
            "otherwise"
        )
    if not predicts:
        return model.size("encoder_embed_dim")
    expected = to_original(HEAD, num_hidden_layers=model.size("encoder_layers"), feat_extract_norm="layer")
    if names[HEAD] != expected:
        raise ConversionError(f"{weights.where} has {names[HEAD]} where {expected} was expected")
    return model.size("teacher_embed_dim")


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
    return read_original_config(
        model,
        head_dim=width // heads,
        # The original has the setting and never applies it.
        attention_dropout=model.share("attention_dropout", 0.1) if kind == FAIRSEQ_HUBERT else 0.0,
        space=space,
        default_subnet=space.default() if kind == STAGE_2 else space.largest(),
        target_size=target_size,
    )
