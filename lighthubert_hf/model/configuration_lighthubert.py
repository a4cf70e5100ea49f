"""Configuration of LightHuBERT supernets and of the subnets cut out of them."""

from dataclasses import replace
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import HubertConfig

from .search_space import SearchSpace, Subnet, check_cuttable


class LayerShape(NamedTuple):
    """What may differ from layer to layer."""

    num_attention_heads: int
    intermediate_size: int
    attention_window: int | None


@strict
class LightHubertConfig(HubertConfig):
    r"""
    Configuration of a `LightHubertModel`. All of `transformers.HubertConfig`'s fields keep their meaning; a model
    whose config has a `search_space` is a supernet, one without is static. Layers of a static model may differ: give
    `per_layer_config={3: {"num_attention_heads": 4, "intermediate_size": 1344}}`.

    Args:
        head_dim (`int`, *optional*, defaults to 64):
            Channels of one attention head. The attention is `num_attention_heads * head_dim` wide, whatever the
            width of the residual stream.
        search_space (`dict` or `SearchSpace`, *optional*):
            The subnets that can be cut out of these weights. The sizes in the config are those of the weights. Only
            with a choice of `conv_dim` does the front end, too, run a slice of itself.
        default_subnet (`dict` or `Subnet`, *optional*):
            The subnet that is active after loading; `SearchSpace.default` if not given.
        attention_window (`int`, *optional*):
            Width of a sliding attention window in frames: frame i attends to the frames j with
            `|i - j| <= attention_window // 2`. `None`: global attention.
        conv_norm_per_width (`bool`, *optional*, defaults to `False`):
            Whether each number of channels that a convolution may have brings a scale and shift of its own for the
            LayerNorm over them (slicing channels changes what it divides by). Needs a choice of `conv_dim`.
        norm_per_width (`bool`, *optional*, defaults to `False`):
            Whether each width of the search space has a scale and shift of its own in every LayerNorm of the encoder.
        head_per_width (`bool`, *optional*, defaults to `False`):
            Whether each width of the search space has a prediction head of its own.
        whole_position_groups (`bool`, *optional*, defaults to `False`):
            What a narrower subnet keeps of the positional convolution: its first groups whole, or, as LightHuBERT
            does, as many groups as ever with less in each. Only whole groups compute for the kept channels what they
            did before. Widths are then multiples of a group's size.
        target_size (`int`, *optional*, defaults to 768):
            Channels of the distillation target that `LightHubertForPreTraining` predicts.
        tdnn_dim, tdnn_kernel, tdnn_dilation, xvector_output_dim:
            The x-vector head, as in `transformers.Wav2Vec2Config`.
    """

    model_type = "lighthubert"

    feat_extract_norm: str = "layer"
    layerdrop: float | int = 0.0
    attention_dropout: float | int = 0.0
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = True
    head_dim: int = 64
    search_space: dict | SearchSpace | None = None
    default_subnet: dict | Subnet | None = None
    attention_window: int | None = None
    conv_norm_per_width: bool = False
    norm_per_width: bool = False
    head_per_width: bool = False
    whole_position_groups: bool = False
    target_size: int = 768
    tdnn_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: list[int] | tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: list[int] | tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        if self.search_space is not None:
            space = self._space()
            self.search_space = space.to_dict()
            subnet = self.default_subnet if self.default_subnet is not None else space.default()
            self.default_subnet = self.canonical(Subnet.of(subnet)).to_dict()
        super().__post_init__(**kwargs)
        # @strict calls the validator too, but wraps its error into one that is no ValueError.
        self.validate_architecture()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', but a `search_space` or `default_subnet` among `kwargs` is checked, not only stored.

        So `from_pretrained(folder, search_space=...)` gives the same weights another space.
        """
        given = {name: kwargs.pop(name) for name in ("search_space", "default_subnet") if name in kwargs}
        return super().from_dict(config_dict | given, **kwargs)

    def _space(self) -> SearchSpace:
        return SearchSpace.of(self.search_space)

    def validate_architecture(self) -> None:
        """Called by `@strict` after construction: sizes that cannot work are named here rather than in a matmul."""
        super().validate_architecture()
        if self.conv_pos_batch_norm:
            raise ValueError(
                "conv_pos_batch_norm=True is not supported: the positional convolution of LightHuBERT is weight-normed"
            )
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_conv_pos_embedding_groups "
                f"({self.num_conv_pos_embedding_groups})"
            )
        for shape in self.layer_shapes:
            window = shape.attention_window
            if window is not None and window < 2:
                raise ValueError(
                    f"attention_window must be at least 2 frames or None for global attention, got {window}"
                )
        if self.conv_norm_per_width and not self.has_elastic_front_end:
            raise ValueError("conv_norm_per_width=True needs a choice of channels; add conv_dim to the search_space")
        for name in ("norm_per_width", "head_per_width"):
            if getattr(self, name) and self.search_space is None:
                raise ValueError(f"{name}=True needs a choice of widths; add a search_space, or leave it out")
        if self.search_space is not None:
            self._validate_search_space()
        elif self.default_subnet is not None:
            raise ValueError("default_subnet is given without a search_space; remove it or add the space")

    def _validate_search_space(self) -> None:
        if self.is_heterogeneous and self.per_layer_attributes & {"num_attention_heads", "intermediate_size"}:
            raise ValueError(
                "a supernet has layers of one shape: per_layer_config and search_space exclude each other"
            )
        space = self._space()
        heads, depth = max(space.num_attention_heads), max(space.num_hidden_layers)
        subnets = [
            space.uniform(width, heads, ratio, depth) for width in space.hidden_size for ratio in space.ffn_ratio
        ]
        for subnet in [*subnets, Subnet.from_dict(self.default_subnet)]:
            try:
                self.check_subnet(subnet)
            except ValueError as error:
                raise ValueError(f"the search space does not fit the model: {error}") from None

    def check_subnet(self, subnet: Subnet) -> None:
        """Raise a ValueError with the reason if `subnet` cannot be cut out of weights of this config's sizes."""
        check_cuttable(
            Subnet.of(subnet),
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            width_step=self.width_step,
            conv_dim=self.conv_dim,
            elastic_front_end=self.has_elastic_front_end,
        )

    @property
    def width_step(self) -> int:
        """What the width of every subnet is a multiple of, because of the groups of the positional convolution."""
        groups = self.num_conv_pos_embedding_groups
        return self.hidden_size // groups if self.whole_position_groups else groups

    def position_groups(self, hidden_size: int) -> int:
        """Groups of the positional convolution of a subnet of that width."""
        return hidden_size // self.width_step if self.whole_position_groups else self.num_conv_pos_embedding_groups

    @property
    def has_elastic_front_end(self) -> bool:
        """Whether the channels of the front end are chosen."""
        return self.search_space is not None and self._space().has_elastic_front_end

    def canonical(self, subnet: Subnet) -> Subnet:
        """`subnet` in the one way to write it here: with its channels if these are chosen, without if they are not.

        So two subnets of this config compute the same if, and only if, they are equal then.
        """
        subnet, full = Subnet.of(subnet), tuple(self.conv_dim)
        if self.has_elastic_front_end:
            return subnet if subnet.conv_dim is not None else replace(subnet, conv_dim=full)
        return subnet if subnet.conv_dim != full else replace(subnet, conv_dim=None)

    def conv_channels(self, subnet: Subnet) -> tuple[int, ...]:
        """Channels of each convolution of the front end in `subnet`."""
        return tuple(self.conv_dim) if subnet.conv_dim is None else subnet.conv_dim

    @property
    def num_plain_heads(self) -> int:
        """Heads of the plain HuBERT of this width: as many as divide it and are at least `head_dim` wide; 0: none."""
        heads = range(self.hidden_size // self.head_dim, 0, -1)
        return next((number for number in heads if self.hidden_size % number == 0), 0)

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """Heads, FFN units and attention window of every layer."""
        layers = self.per_layer_config if self.is_heterogeneous else [self] * self.num_hidden_layers
        return tuple(
            LayerShape(layer.num_attention_heads, layer.intermediate_size, layer.attention_window) for layer in layers
        )

    @property
    def architecture(self) -> Subnet:
        """The sizes of the weights themselves, as a subnet: what a static model is, what a supernet can at most be."""
        heads, sizes, _ = zip(*self.layer_shapes, strict=True)
        return self.canonical(Subnet(self.hidden_size, heads, sizes))


__all__ = ["LightHubertConfig"]
