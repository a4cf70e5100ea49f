"""How large every part of the demo is, and the shape of its supernet."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

# Of the teacher's sizes. The first convolutions do most of a front end's work, so they may become the narrowest; the
# last feeds the encoder and stays whole.
_WIDTHS, _HEADS, _RATIOS, _DEPTHS = (1 / 2, 3 / 4, 1), (1 / 2, 1), (1 / 2, 3 / 4, 1), (3 / 4, 1)
_EARLY, _LATE, _LAST = (1 / 4, 1 / 2, 3 / 4, 1), (1 / 2, 3 / 4, 1), (1,)
_NUM_EARLY = 3


def search_space(teacher: PreTrainedConfig) -> dict[str, Any]:
    """The choices of a supernet that starts as `teacher`: down to half of its encoder, a quarter of its front end."""
    ratio = teacher.intermediate_size / teacher.hidden_size
    convolutions, group = len(teacher.conv_dim), teacher.hidden_size // teacher.num_conv_pos_embedding_groups
    shares = [*([_EARLY] * _NUM_EARLY + [_LATE] * convolutions)[: convolutions - 1], _LAST]
    return {
        "hidden_size": _choices(teacher.hidden_size, _WIDTHS, group),
        "num_attention_heads": _choices(teacher.num_attention_heads, _HEADS),
        "ffn_ratio": [ratio * share for share in _RATIOS],
        "num_hidden_layers": _choices(teacher.num_hidden_layers, _DEPTHS),
        "conv_dim": [_choices(channels, layer) for channels, layer in zip(teacher.conv_dim, shares, strict=True)],
    }


def num_target_layers(teacher: PreTrainedConfig) -> int:
    """Two thirds of the teacher's layers, as 8 of 12 in the paper."""
    return max(1, round(2 / 3 * teacher.num_hidden_layers))


def _choices(size: int, shares: tuple[float, ...], multiple: int = 1) -> list[int]:
    return sorted({max(1, round(size * share / multiple)) * multiple for share in shares})


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of every part. The defaults take at most 12 minutes on 2 cores; `tiny` only shows that the parts meet."""

    teacher: str | None = None
    dataset: str | None = None
    text_column: str | None = "text"
    corpus_minutes: float = 80.0
    held_out_minutes: float = 3.0
    teacher_steps: int = 120
    teacher_ctc_steps: int = 320
    front_end_steps: int = 100
    supernet_steps: int = 400
    batch_seconds: float = 32.0
    window_size: int = 256
    measured_on_seconds: float = 60.0
    search_trials: int = 100
    random_subnets: int = 8
    ctc_steps: int = 300
    units: int = 100
    unit_steps: int = 4
    unit_hours: float = 0.2
    timing_repeats: int = 25
    seed: int = 0

    @classmethod
    def tiny(cls, **changes) -> "DemoSettings":
        return replace(
            cls(
                corpus_minutes=0.5,
                held_out_minutes=0.1,
                teacher_steps=1,
                teacher_ctc_steps=1,
                front_end_steps=1,
                supernet_steps=1,
                batch_seconds=10.0,
                window_size=8,
                measured_on_seconds=1.0,
                search_trials=8,
                random_subnets=1,
                ctc_steps=1,
                units=4,
                unit_steps=1,
                unit_hours=0.001,
                timing_repeats=1,
            ),
            **changes,
        )
