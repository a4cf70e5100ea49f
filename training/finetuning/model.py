"""A model with a head from a supernet, a static subnet or a plain HuBERT, and which of its parts are trained when."""

import logging
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, TrainerCallback

from lighthubert_hf import LightHubertConfig  # from the package: that registers the Auto classes
from lighthubert_hf.extras import require
from lighthubert_hf.loading import load, load_config
from lighthubert_hf.model.extraction import subnet_config
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.subnets import choose_subnet
from lighthubert_hf.training.recipes.sections import SubnetSection

from .recipe import FreezingSection, LoraSection, PretrainedSection

logger = logging.getLogger(__name__)

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")


def build_model(
    settings: PretrainedSection, auto_class: type, *, config_changes: dict[str, Any], keep_head: bool = False
) -> PreTrainedModel:
    """The static model that `settings` describes, with the head of `auto_class`, in float32.

    Args:
        settings: What to load, or the architecture to fill with random weights.
        auto_class: `transformers.AutoModelForCTC` or another.
        config_changes: Fields of the config to set: labels, SpecAugment.
        keep_head: Load the head as well; without it the head is new.

    Raises:
        ValueError: if `subnet` is given for a static model or does not fit, or the checkpoint is incomplete.
    """
    config = _config(settings, auto_class, config_changes)
    subnet = _subnet(settings, config)
    if settings.from_scratch or settings.path is None:
        return auto_class.from_config(config if subnet is None else subnet_config(config, subnet))
    # Models of other families are often published without the mask embedding; it is trained here, from a random one.
    new = "" if config.model_type == "lighthubert" else "masked_spec_embed"
    loaded = load(
        auto_class if keep_head else AutoModel,
        settings.path,
        revision=settings.revision,
        config=config,
        dtype=torch.float32,
        may_be_new=lambda name: bool(new) and name.endswith(new),
    ).model
    if subnet is not None:
        loaded = loaded.extract_subnet(subnet)
    if keep_head:
        return loaded
    model = auto_class.from_config(loaded.config)
    model.base_model.load_state_dict(loaded.state_dict(), strict=True)
    return model


def _config(settings: PretrainedSection, auto_class: type, changes: dict[str, Any]) -> PretrainedConfig:
    if settings.random_config is not None:
        config = LightHubertConfig(**settings.random_config)
    else:
        config = load_config(settings.path, settings.revision)
    if not hasattr(config, "conv_kernel") or type(config) not in auto_class._model_mapping:
        raise ValueError(
            f"{settings.path} is a {config.model_type}, not a speech encoder that {auto_class.__name__} knows; "
            "give a LightHuBERT or a HuBERT (`lighthubert convert` makes a LightHuBERT of a HuBERT)"
        )
    changes = {"layerdrop": settings.layerdrop, **changes}
    if settings.dropout is not None:
        changes |= dict.fromkeys(DROPOUTS, settings.dropout)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def _subnet(settings: PretrainedSection, config: PretrainedConfig) -> Subnet | None:
    """Which subnet to extract; `None` for a static model."""
    if getattr(config, "search_space", None) is None:
        if settings.subnet is not None:
            raise ValueError(f"model.subnet is given, but {settings.path} is static; remove it, or name the supernet")
        return None
    if isinstance(settings.subnet, SubnetSection):
        return Subnet.from_dict(settings.subnet.model_dump())
    return choose_subnet(settings.subnet or "default", config)


def add_lora(model: PreTrainedModel, settings: LoraSection):
    """`model` with low-rank adapters; they and the head are trained. `merge_and_unload()` makes it plain again."""
    require("peft", what="lora")
    from peft import LoraConfig, get_peft_model

    encoder = model.base_model_prefix
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
            modules_to_save=_head_modules(model),
        ),
    )
    # peft goes by the end of a name, and a module of the encoder may end like one of the head.
    for name, parameter in adapted.named_parameters():
        if encoder in name.split(".") and "modules_to_save" in name:
            parameter.requires_grad_(False)
    return adapted


def _head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules with parameters outside the encoder; of lists their members, as peft wants them."""
    names = []
    for name, module in model.named_children():
        if name != model.base_model_prefix and any(True for _ in module.parameters()):
            members = [f"{name}.{key}" for key, _ in module.named_children()]
            names += members if isinstance(module, torch.nn.ModuleList) else [name]
    return names


def head_parameters(model: torch.nn.Module) -> set[int]:
    """`id`s of the parameters outside the encoder, with adapters or without."""
    named = model.named_parameters()
    return {id(parameter) for name, parameter in named if model.base_model_prefix not in name.split(".")}


def freeze(model: PreTrainedModel, settings: FreezingSection) -> None:
    """Freeze what is not trained in the whole run."""
    config, mask = model.config, getattr(model.base_model, "masked_spec_embed", None)
    if mask is not None and not (config.apply_spec_augment and config.mask_time_prob > 0):
        mask.requires_grad_(False)  # no frame is masked: several processes would wait for its gradient
    if settings.freeze == "encoder":
        model.freeze_base_model()
    elif settings.freeze == "front_end":
        model.freeze_feature_encoder()


class Thawing(TrainerCallback):
    """Trains the head alone at first, then thaws the encoder: all of it, or layer by layer from the top.

    What is frozen when training begins stays so. Below the lowest layer come the projection and the front end,
    together.
    """

    def __init__(self, settings: FreezingSection):
        self.settings = settings

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # The optimizer exists by now and holds these parameters; without a gradient it leaves them alone.
        encoder = model.base_model
        layers = [list(layer.parameters()) for layer in reversed(encoder.encoder.layers)]
        known = {id(parameter) for layer in layers for parameter in layer}
        below = [parameter for parameter in encoder.parameters() if id(parameter) not in known]
        self.groups = [[p for p in group if p.requires_grad] for group in (*layers, below)]
        self._apply(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        self._apply(state.global_step)

    def num_thawed(self, step: int) -> int:
        """How many groups are trained in `step` (0-based)."""
        if step < self.settings.head_only_steps:
            return 0
        if self.settings.thaw_layers_every == 0:
            return len(self.groups)
        return 1 + (step - self.settings.head_only_steps) // self.settings.thaw_layers_every

    def _apply(self, step: int) -> None:
        for index, group in enumerate(self.groups):
            for parameter in group:
                parameter.requires_grad_(index < self.num_thawed(step))
