"""The front-end study's sizes: a teacher whose front end has the share of its arithmetic that HuBERT Base's has."""

from dataclasses import dataclass, field, replace

from settings import SETTINGS, STUDIES, Setting

from lighthubert_hf import Subnet

FULL, HALF, THIRD, SIXTH = "whole", "half", "third", "sixth"


@dataclass(frozen=True)
class FrontEndSetting(Setting):
    """Args beyond `Setting`'s:
    front_ends: channels by name, of the whole, half, a third and a sixth of the front end's arithmetic.
    channel_choices: of the elastic space.
    first_steps, joint_steps: of the two stages; everything else gets their work.
    first_learning_rate: of the first.
    order_seconds: audio that channels are ordered on.
    screened_seeds: in which ideas that are only tried are tried.
    front_candidates: random subnets beside the uniform ones that the Pareto fronts are chosen from.
    """

    front_ends: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channel_choices: tuple[tuple[int, ...], ...] = ()
    first_steps: int = 60
    joint_steps: int = 240
    first_learning_rate: float = 2e-3
    order_seconds: float = 60.0
    screened_seeds: tuple[int, ...] = (0,)
    front_candidates: int = 30

    @property
    def elastic_space(self) -> dict:
        return self.architecture.space | {"conv_dim": self.channel_choices}

    def uniform_encoders(self) -> list[Subnet]:
        """One of each width, with heads in proportion, the largest ratio and all layers, and one layer less."""
        space, full = self.architecture.search_space, self.architecture.hidden_size
        found = []
        for width in space.hidden_size:
            wanted = self.architecture.num_attention_heads * width / full
            heads = min(space.num_attention_heads, key=lambda heads, wanted=wanted: abs(heads - wanted))
            found += [space.uniform(width, heads, max(space.ffn_ratio), depth) for depth in space.num_hidden_layers]
        return found


def with_front_end(encoder: Subnet, channels: tuple[int, ...]) -> Subnet:
    return replace(encoder, conv_dim=channels)


FRONT_ENDS = {
    FULL: (64, 64, 64, 64, 64, 64, 64),
    HALF: (48, 48, 32, 32, 64, 64, 64),
    THIRD: (32, 32, 32, 48, 64, 64, 64),
    SIXTH: (16, 16, 32, 32, 48, 64, 64),
}
CHANNEL_CHOICES = (
    (16, 32, 48, 64),
    (16, 32, 48, 64),
    (24, 32, 48, 64),
    (32, 48, 64),
    (32, 48, 64),
    (48, 64),
    (64,),
)


FRONT_END_SETTINGS = {
    "default": FrontEndSetting.of(
        STUDIES,
        front_ends=FRONT_ENDS,
        channel_choices=CHANNEL_CHOICES,
    ),
    "tiny": FrontEndSetting.of(
        SETTINGS["tiny"],
        front_ends={
            FULL: (16,) * 7,
            HALF: (16, 8, 16, 16, 16, 16, 16),
            THIRD: (8, 8, 8, 16, 16, 16, 16),
            SIXTH: (8, 8, 8, 8, 16, 16, 16),
        },
        channel_choices=((8, 16), (8, 16), (8, 16), (8, 16), (16,), (16,), (16,)),
        first_steps=2,
        joint_steps=2,
        order_seconds=2.0,
        front_candidates=2,
    ),
}
