"""Configuration of LightHuBERT supernets and of the subnets cut out of them."""

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
            The subnets that can be cut out of these weights. The sizes in the config are those of the weights.
        default_subnet (`dict` or `Subnet`, *optional*):
            The subnet that is active after loading; `SearchSpace.default` if not given.
        attention_window (`int`, *optional*):
            Width of a sliding attention window in frames: frame i attends to the frames j with
            `|i - j| <= attention_window // 2`. `None`: global attention.
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
            subnet = subnet if isinstance(subnet, Subnet) else Subnet.from_dict(subnet)
            self.default_subnet = subnet.to_dict()
        super().__post_init__(**kwargs)
        # @strict calls the validator too, but wraps its error into one that is no ValueError.
        self.validate_architecture()

    def _space(self) -> SearchSpace:
        space = self.search_space
        return space if isinstance(space, SearchSpace) else SearchSpace.from_dict(space)

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
            subnet,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            groups=self.num_conv_pos_embedding_groups,
        )

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
        return Subnet(self.hidden_size, heads, sizes)


__all__ = ["LightHubertConfig"]
