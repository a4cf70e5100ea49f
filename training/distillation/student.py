"""The student that a recipe's section `student` describes: a supernet, or one static subnet."""

import difflib
import math
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet
from lighthubert_hf.loading import load, load_config
from lighthubert_hf.subnets import choose_subnet

from .channel_order import WITH_OWN, share_with_widths
from .recipe import StudentSection

TEACHER_INIT = ("hubert", "wav2vec2")  # encoders whose weights LightHuBERT's layers can hold
# What a new student takes from its teacher's config. Regularisation, masking and CTC settings are our own defaults.
_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout",
    "activation_dropout",
    "do_stable_layer_norm",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "feat_proj_layer_norm",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
)
_POSITIONS = ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm")


def build_student(
    settings: StudentSection,
    teacher: PreTrainedModel,
    seed: int,
    order: Callable[[LightHubertForPreTraining], None] | None = None,
) -> LightHubertForPreTraining:
    """The student on the CPU in fp32; what is not loaded is initialised from `seed`.

    Args:
        teacher: The teacher's encoder; its width is what the student predicts.
        order: Reorders the student's weights in place, before a subnet is extracted.

    Raises:
        FileNotFoundError: `init` is no folder or Hub id.
        ValueError: The teacher's weights, the config's fields, the search space or the subnet do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.init in ("teacher", "random"):
            student = LightHubertForPreTraining(fresh_config(settings, teacher.config))
            if settings.init == "teacher":
                _copy_weights(teacher, student)
            share_with_widths(student)
        else:
            student = _loaded(settings, teacher.config.hidden_size)
    if order is not None:
        order(student)
    if settings.subnet is not None:
        student = extracted(student, settings)
    if settings.freeze_front_end:
        student.freeze_feature_encoder()
    return student


def fresh_config(settings: StudentSection, config: PreTrainedConfig) -> LightHubertConfig:
    """The config of a student that is not loaded, for a teacher with `config`."""
    if settings.init == "teacher" and config.model_type not in TEACHER_INIT:
        raise ValueError(
            f"a {config.model_type} teacher's weights do not fit LightHuBERT's layers (those of "
            f"{' and '.join(TEACHER_INIT)} do); set student.init=random"
        )
    data = lighthubert_fields(config) | {"target_size": config.hidden_size}
    return _config(data, settings)


def lighthubert_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What a LightHubertConfig takes from an encoder's: its shape; where positions come from, if layers match."""
    copied = _SHAPE + _POSITIONS if config.model_type in TEACHER_INIT else _SHAPE
    data = {name: getattr(config, name) for name in copied if hasattr(config, name)}
    return data | {"head_dim": config.hidden_size // config.num_attention_heads}


def _copy_weights(teacher: PreTrainedModel, student: LightHubertForPreTraining) -> None:
    own_of_widths = {
        name: tensor for name, tensor in student.lighthubert.state_dict().items() if ".per_width." in name
    }
    state, own = teacher.state_dict() | own_of_widths, student.lighthubert.state_dict()
    state.setdefault("masked_spec_embed", own["masked_spec_embed"])  # models that never mask have none
    differing = sorted(
        key
        for key in state.keys() | own.keys()
        if key not in state or key not in own or state[key].shape != own[key].shape
    )
    if differing:
        raise ValueError(
            f"student.config changes the shape of {len(differing)} of the teacher's weights ({differing[0]}, …); "
            "leave the sizes out or set student.init=random"
        )
    student.lighthubert.load_state_dict(state, strict=True)


def _loaded(settings: StudentSection, target_size: int) -> LightHubertForPreTraining:
    try:
        found = load_config(settings.init, settings.revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"student.init is neither 'teacher' nor 'random', and {error}") from None
    if found.model_type != LightHubertConfig.model_type:
        raise ValueError(
            f"student.init {settings.init!r} is a {found.model_type} model, not a LightHuBERT; convert it, or "
            "name it as teacher.path with student.init=teacher"
        )
    config = _config(found.to_dict() | {"target_size": target_size}, settings)
    # A folder without a prediction head, or with one for another teacher, gets a new one; all else must be there.
    loaded = load(
        LightHubertForPreTraining,
        settings.init,
        config=config,
        revision=settings.revision,
        dtype=torch.float32,
        may_be_new=lambda name: name == "prediction_head.weight" or ".per_width." in name,
    )
    student, own_parts = loaded.model, {name for name in loaded.absent if ".per_width." in name}
    for name, module in student.named_modules():
        if isinstance(module, WITH_OWN) and any(key.startswith(f"{name}.per_width.") for key in own_parts):
            module.share_with_widths()
    return student


def _config(data: dict[str, Any], settings: StudentSection) -> LightHubertConfig:
    for key in settings.config:
        if key not in data and key not in LightHubertConfig().to_dict():
            close = difflib.get_close_matches(key, LightHubertConfig().to_dict(), n=1)
            raise ValueError(
                f"student.config has no field {key!r}{f'; did you mean {close[0]!r}?' if close else ''} "
                "(the fields of LightHubertConfig)"
            )
    data = data | settings.config
    try:
        space = _space(settings, data)
        if space is not None:
            data |= {"search_space": space, "default_subnet": settings.config.get("default_subnet")}
        return LightHubertConfig.from_dict(data)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"the student's config does not work: {' '.join(str(error).split())}") from None


def _space(settings: StudentSection, data: dict[str, Any]) -> SearchSpace | None:
    """The space that the recipe gives a student of these sizes; `None`: it has the one it is loaded with, or none."""
    space = settings.search_space
    if space == "teacher":
        if settings.init not in ("teacher", "random"):
            return None
        LightHubertConfig.from_dict(data)  # sizes that are none
        return space_within(data)
    if isinstance(space, str):
        return getattr(SearchSpace, space)()
    return None if space is None else SearchSpace(**space.model_dump())


def space_within(sizes: dict[str, Any]) -> SearchSpace:
    """The choices for a supernet of given full sizes, fields of a LightHubertConfig.

    Width, heads and FFN in the proportions of the published `base` space, depth in those of `small`: of HuBERT Base's
    sizes 512, 640, 768; 8, 10, 12; 3.5, 4; 10, 11, 12. Widths are multiples of what the positional convolution needs.
    """
    sizes = LightHubertConfig().to_dict() | sizes
    width, heads, depth = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_hidden_layers"]
    groups, head_dim = sizes["num_conv_pos_embedding_groups"], sizes["head_dim"]
    least = width // groups if sizes["whole_position_groups"] else groups
    step = math.lcm(least, head_dim) if width % math.lcm(least, head_dim) == 0 else least
    shares = (2 / 3, 5 / 6, 1)
    ratio = sizes["intermediate_size"] / width
    return SearchSpace(
        sorted({max(step, round(width * share / step) * step) for share in shares}),
        sorted({max(1, round(heads * share)) for share in shares}),
        (ratio * 7 / 8, ratio),
        sorted({max(1, round(depth * share)) for share in (10 / 12, 11 / 12, 1)}),
    )


def extracted(supernet: LightHubertForPreTraining, settings: StudentSection) -> LightHubertForPreTraining:
    """The static student that is the subnet `settings` names."""
    space = supernet.search_space
    if space is None:
        raise ValueError("student.subnet is given, but the student is static; remove it, or name a supernet")
    if isinstance(settings.subnet, str):
        subnet = choose_subnet(settings.subnet, supernet.config)
    else:
        subnet = Subnet(**settings.subnet.model_dump())
    return supernet.extract_subnet(subnet)
