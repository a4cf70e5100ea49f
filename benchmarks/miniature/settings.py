"""How large the miniature is: everything a run depends on, as one frozen record."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from lighthubert_hf import SearchSpace, Subnet
from lighthubert_hf.training.synthetic.speech import TRAINING_VOICES

_MORE_VOICES = (
    "Alex Alicia Andy Demonic Gene Jacky Lee Marco Mario Michael Reed adam antonio aunty belinda boris david ed "
    "edward fast grandma grandpa gustave iven john klatt linda mike2 paul quincy"
)
_UNHEARD_VOICES = "f5 Andrea Annie Denis Hugo Storm anika klatt3 m7 m8 max robosoft6 steph2 victor whisper zac"


def _voices(names: str) -> tuple[str, ...]:
    return tuple(f"en-us+{name}" for name in names.split())


@dataclass(frozen=True)
class Architecture:
    """A teacher, and the supernet of its shape.

    `space` joins the two published spaces (`small` and `base`), as shares of the teacher's sizes.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    conv_channels: int
    space: dict[str, tuple]
    # Subnets of uniform layers, (width, heads, ratio, layers): those of 71 % and 29 % of the parameters have the
    # proportions of the paper's default subnets of `base` and of `small`.
    named: dict[str, tuple[int, int, float, int]]

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the teacher's HubertConfig and of the supernet's."""
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 4 * self.hidden_size,
            "conv_dim": [self.conv_channels] * 7,
            "feat_extract_norm": "layer",
            "num_conv_pos_embeddings": 32,
            "num_conv_pos_embedding_groups": 16,
        }

    @property
    def num_target_layers(self) -> int:
        """Two thirds of the layers, as 8 of 12 in the paper."""
        return round(self.num_hidden_layers * 2 / 3)

    @property
    def search_space(self) -> SearchSpace:
        return SearchSpace(**self.space)

    def named_subnets(self) -> dict[str, Subnet]:
        space = self.search_space
        extremes = {"largest": space.largest(), "default": space.default(), "smallest": space.smallest()}
        return extremes | {name: space.uniform(*sizes) for name, sizes in self.named.items()}


SMALL = Architecture(
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=6,
    conv_channels=48,
    space={
        "hidden_size": (64, 96, 128, 160, 192),
        "num_attention_heads": (2, 3, 4, 5, 6),
        "ffn_ratio": (3.0, 3.5, 4.0),
        "num_hidden_layers": (5, 6),
    },
    named={"71": (160, 5, 4.0, 6), "29": (96, 3, 4.0, 6)},
)


TINY = Architecture(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    conv_channels=16,
    space={
        "hidden_size": (16, 32),
        "num_attention_heads": (2, 4),
        "ffn_ratio": (3.0, 4.0),
        "num_hidden_layers": (3, 4),
    },
    named={"71": (32, 2, 3.0, 4), "29": (16, 2, 4.0, 4)},
)
# The studies' of training: its front end has 37 % of the multiply-accumulates in clips of 2 s (HuBERT Base: 35 %).
NARROW = Architecture(
    hidden_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    conv_channels=64,
    space={
        "hidden_size": (48, 64, 96, 112, 128),
        "num_attention_heads": (2, 3, 4),
        "ffn_ratio": (3.0, 3.5, 4.0),
        "num_hidden_layers": (5, 6),
    },
    named={"71": (112, 3, 3.5, 6), "29": (64, 2, 4.0, 6)},
)
BASE = Architecture(
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=12,
    conv_channels=192,
    space={
        "hidden_size": (128, 192, 256, 320, 384),
        "num_attention_heads": (4, 6, 8, 10, 12),
        "ffn_ratio": (3.0, 3.5, 4.0),
        "num_hidden_layers": (10, 11, 12),
    },
    named={"71": (320, 10, 4.0, 12), "29": (192, 6, 4.0, 12)},
)


@dataclass(frozen=True)
class Setting:
    """Sizes of everything. Steps of stage 2 alone and of students trained alone are those of both stages together."""

    name: str
    architecture: Architecture = SMALL
    seeds: tuple[int, ...] = (0, 1, 2)
    # Speech
    corpus_minutes: float = 200.0
    held_out_minutes: float = 12.0
    voices: tuple[str, ...] = TRAINING_VOICES + _voices(_MORE_VOICES)
    unheard_voices: tuple[str, ...] = _voices(_UNHEARD_VOICES)
    # Teacher
    teacher_pretrain_steps: int = 250
    teacher_ctc_steps: int = 450
    teacher_batch_seconds: float = 24.0
    # Half of the CTC steps again, so often at most, while the teacher cannot read
    teacher_rounds: int = 3
    # Distillation
    stage1_steps: int = 200
    stage2_steps: int = 200
    batch_seconds: float = 12.0
    crop_seconds: float = 6.0
    learning_rate: float = 1e-3
    # Losses along the way (of the same random subnets on the same held-out utterances in every run of a seed)
    curve_points: int = 8
    curve_utterances: int = 12
    curve_subnets: int = 6
    # Losses at the end, of as many random subnets and the named ones, on other sentences
    scored_utterances: int = 40
    scored_subnets: int = 12
    # Search
    search_trials: int = 60
    population_size: int = 15
    search_utterances: int = 24
    # Probes
    ranked_subnets: int = 5
    probe_examples: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"pr": (240, 120), "ks": (120, 360), "ic": (96, 300)}
    )
    probe_max_train: int = 240
    probe_max_test: int = 360
    probe_steps: dict[str, int] = field(
        default_factory=lambda: {"pr": 150, "ks": 200, "ic": 200, "sid": 200, "asv": 100}
    )

    @property
    def total_steps(self) -> int:
        return self.stage1_steps + self.stage2_steps

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, setting: "Setting", **fields) -> Self:
        """`setting` with other `fields`, as one of a study, which has more of them."""
        return cls(**{name: getattr(setting, name) for name in setting.__dataclass_fields__} | fields)


DEFAULT = Setting("default")
# Of the studies of training, which share a teacher: cheaper steps, and shorter probes.
STUDIES = replace(
    DEFAULT,
    architecture=NARROW,
    teacher_pretrain_steps=500,
    teacher_ctc_steps=1000,
    teacher_batch_seconds=8.0,
    curve_points=4,
    probe_max_train=160,
    probe_max_test=160,
)
SETTINGS = {
    "default": DEFAULT,
    # Seconds: shows that the parts meet; its numbers say nothing.
    "tiny": Setting(
        "tiny",
        TINY,
        corpus_minutes=0.7,
        held_out_minutes=0.3,
        voices=TRAINING_VOICES,
        unheard_voices=DEFAULT.unheard_voices[:4],
        teacher_pretrain_steps=2,
        teacher_ctc_steps=2,
        teacher_rounds=0,
        stage1_steps=3,
        stage2_steps=3,
        batch_seconds=4.0,
        crop_seconds=2.0,
        curve_points=2,
        curve_utterances=4,
        curve_subnets=2,
        scored_utterances=4,
        scored_subnets=3,
        search_trials=8,
        population_size=4,
        search_utterances=4,
        ranked_subnets=2,
        probe_examples={"pr": (8, 4), "ks": (12, 12), "ic": (12, 6)},
        probe_max_train=12,
        probe_max_test=12,
        probe_steps={"pr": 2, "ks": 2, "ic": 2, "sid": 2, "asv": 2},
    ),
    # One seed with four times the steps: tells a claim that fails for want of training from one that fails.
    "long": replace(
        DEFAULT, name="long", seeds=(0,), stage1_steps=4 * DEFAULT.stage1_steps, stage2_steps=4 * DEFAULT.stage2_steps
    ),
    # For one GPU and a day or so; nobody has run it.
    "gpu": replace(
        DEFAULT,
        name="gpu",
        architecture=BASE,
        seeds=(0, 1, 2, 3, 4),
        corpus_minutes=3000.0,
        held_out_minutes=60.0,
        teacher_pretrain_steps=20_000,
        teacher_ctc_steps=40_000,
        teacher_batch_seconds=160.0,
        stage1_steps=20_000,
        stage2_steps=20_000,
        batch_seconds=160.0,
        crop_seconds=15.0,
        learning_rate=5e-4,
        curve_points=20,
        curve_utterances=200,
        scored_utterances=400,
        scored_subnets=40,
        search_trials=400,
        population_size=40,
        search_utterances=200,
        ranked_subnets=20,
        probe_examples={"pr": (2000, 800), "ks": (600, 1200), "ic": (480, 1200)},
        probe_max_train=2000,
        probe_max_test=1200,
        probe_steps={"pr": 4000, "ks": 4000, "ic": 4000, "sid": 4000, "asv": 4000},
    ),
}
