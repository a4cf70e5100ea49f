"""LightHuBERT: a HuBERT encoder out of whose weights smaller encoders can be cut, and those smaller encoders.

One class serves both. With `config.search_space` the layers are elastic and run the slice that `set_active_subnet`
chose; without it they are ordinary static layers. State-dict names are those of `transformers.HubertModel`.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    XVectorOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.hubert.modeling_hubert import _compute_mask_indices
from transformers.models.wav2vec2.modeling_wav2vec2 import AMSoftmaxLoss, TDNNLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

from .activation import activation_lock, of_one_subnet
from .codebook import (
    Codebook,
    carried,
    encode_units,
    published_codebooks,
    save_codebooks,
    say_left_behind,
    still_right,
)
from .configuration_lighthubert import LayerShape, LightHubertConfig
from .elastic import ElasticHead, ElasticLayerNorm, ElasticLinear, ElasticWeightNormConv1d, WeightNormConv1d
from .fast_encoder import encode_by_length
from .fast_linear import activate, can_multiply, multiply
from .fast_paths import is_recorded
from .front_end import FrontEnd, Lengths, conv_layer_norm, conv_output_lengths, receptive_field
from .search_space import SearchSpace, Subnet, ffn_ranges, kept_layers


def _linear(config: LightHubertConfig) -> type[nn.Linear]:
    return nn.Linear if config.search_space is None else ElasticLinear


def _layer_norm(config: LightHubertConfig) -> nn.LayerNorm:
    if config.search_space is None:
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    own_sizes = config.search_space["hidden_size"] if config.norm_per_width else ()
    return ElasticLayerNorm(config.hidden_size, config.layer_norm_eps, own_sizes)


def _prediction_head(config: LightHubertConfig) -> nn.Linear:
    if config.head_per_width:
        return ElasticHead(config.hidden_size, config.target_size, config.search_space["hidden_size"])
    return _linear(config)(config.hidden_size, config.target_size, bias=False)


class LightHubertFeatureProjection(nn.Module):
    """Norm of the convolutional features and their projection to the encoder's width."""

    def __init__(self, config: LightHubertConfig):
        super().__init__()
        self.layer_norm = (
            conv_layer_norm(config, -1, config.layer_norm_eps) if config.feat_proj_layer_norm else nn.Identity()
        )
        self.projection = _linear(config)(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def set_active(self, channels: int, hidden_size: int) -> None:
        self.projection.set_active(in_ranges=((0, channels),), out_ranges=((0, hidden_size),))
        if isinstance(self.layer_norm, ElasticLayerNorm):
            self.layer_norm.active_size = channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.projection(self.layer_norm(features)))


class LightHubertPositionalConvEmbedding(nn.Module):
    """Relative positions by a wide grouped convolution."""

    def __init__(self, config: LightHubertConfig):
        super().__init__()
        sizes = config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        if config.search_space is None:
            self.conv = WeightNormConv1d(*sizes)
        else:
            self.conv = ElasticWeightNormConv1d(*sizes, whole_groups=config.whole_position_groups)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(hidden_states))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, for transformers' attention interface: `(B, H, T, D)` in, `(B, T, H, D)` and weights out."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LightHubertAttention(nn.Module):
    """Multi-head self-attention whose width, heads times `head_dim`, need not be that of the residual stream."""

    is_causal = False

    def __init__(self, config: LightHubertConfig, shape: LayerShape):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.dropout = config.attention_dropout
        linear, width = _linear(config), shape.num_attention_heads * config.head_dim
        self.k_proj = linear(config.hidden_size, width)
        self.v_proj = linear(config.hidden_size, width)
        self.q_proj = linear(config.hidden_size, width)
        self.out_proj = linear(width, config.hidden_size)

    def set_active(self, hidden_size: int, num_heads: int) -> None:
        stream, width = ((0, hidden_size),), ((0, num_heads * self.head_dim),)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.set_active(in_ranges=stream, out_ranges=width)
        self.out_proj.set_active(in_ranges=width, out_ranges=stream)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(B, T, E)` in; `(B, T, E)` and, where the attention implementation has them, weights `(B, H, T, T)` out."""
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        projections = self.q_proj, self.k_proj, self.v_proj
        fast = can_multiply([*projections, self.out_proj], hidden_states)
        query, key, value = (
            (multiply(projection, hidden_states) if fast else projection(hidden_states)).view(shape).transpose(1, 2)
            for projection in projections
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        out = out.flatten(-2)
        return multiply(self.out_proj, out) if fast else self.out_proj(out), weights


class LightHubertFeedForward(nn.Module):
    def __init__(self, config: LightHubertConfig, shape: LayerShape):
        super().__init__()
        linear = _linear(config)
        self.full_hidden_size = config.hidden_size
        self.intermediate_dense = linear(config.hidden_size, shape.intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = linear(shape.intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def set_active(self, hidden_size: int, intermediate_size: int) -> None:
        stream, units = ((0, hidden_size),), ffn_ranges(hidden_size, intermediate_size, self.full_hidden_size)
        self.intermediate_dense.set_active(in_ranges=stream, out_ranges=units)
        self.output_dense.set_active(in_ranges=units, out_ranges=stream)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        linears = self.intermediate_dense, self.output_dense
        if can_multiply(linears, hidden_states, self.intermediate_act_fn):
            hidden_states = multiply(self.intermediate_dense, hidden_states, gelu=True)
            hidden_states = multiply(self.output_dense, self.intermediate_dropout(hidden_states))
        else:
            hidden_states = activate(self.intermediate_act_fn, self.intermediate_dense, hidden_states)
            hidden_states = self.output_dense(self.intermediate_dropout(hidden_states))
        return self.output_dropout(hidden_states)


class LightHubertEncoderLayer(GradientCheckpointingLayer):
    """Attention and FFN, normed after each residual, or before (`do_stable_layer_norm`)."""

    def __init__(self, config: LightHubertConfig, shape: LayerShape):
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.attention = LightHubertAttention(config, shape)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = _layer_norm(config)
        self.feed_forward = LightHubertFeedForward(config, shape)
        self.final_layer_norm = _layer_norm(config)
        self.active: tuple[int, int, int] | None = None  # width, heads, FFN units, if elastic

    def set_active(self, hidden_size: int, num_heads: int, intermediate_size: int) -> None:
        self.active = hidden_size, num_heads, intermediate_size
        self.attention.set_active(hidden_size, num_heads)
        self.feed_forward.set_active(hidden_size, intermediate_size)
        self.layer_norm.active_size = self.final_layer_norm.active_size = hidden_size

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        active: tuple[int, int, int] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`active`: what of an elastic layer has to be active still when gradient checkpointing runs it again."""
        if active != self.active and active is not None:
            raise RuntimeError(
                f"a layer of (width, heads, FFN units) {active} should run, but {self.active} are active: the subnet "
                "was changed before the backward pass, which runs the layers again; call backward() first"
            )
        if self.pre_norm:
            attended, weights = self.attention(self.layer_norm(hidden_states), attention_mask, **kwargs)
            hidden_states = hidden_states + self.dropout(attended)
            hidden_states = hidden_states + self.feed_forward(self.final_layer_norm(hidden_states))
        else:
            attended, weights = self.attention(hidden_states, attention_mask, **kwargs)
            hidden_states = self.layer_norm(hidden_states + self.dropout(attended))
            hidden_states = self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))
        return hidden_states, weights


@dataclass
class _WindowConfig:
    """What transformers reads of a config when it makes a sliding-window mask; ours may have a window per layer."""

    _attn_implementation: str
    sliding_window: int
    is_causal: bool = False


class LightHubertEncoder(nn.Module):
    """Positional convolution and the transformer layers, of which `active_layers` run."""

    def __init__(self, config: LightHubertConfig):
        super().__init__()
        self.config = config
        self.pos_conv_embed = LightHubertPositionalConvEmbedding(config)
        self.layer_norm = _layer_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(LightHubertEncoderLayer(config, shape) for shape in config.layer_shapes)
        self.active_layers = tuple(range(len(self.layers)))

    def set_active(self, subnet: Subnet) -> None:
        self.pos_conv_embed.conv.active_size = self.layer_norm.active_size = subnet.hidden_size
        self.active_layers = kept_layers(subnet.num_hidden_layers, len(self.layers))
        layers = self.active_layers, subnet.num_attention_heads, subnet.intermediate_size
        for index, heads, size in zip(*layers, strict=True):
            self.layers[index].set_active(subnet.hidden_size, heads, size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """
        Args:
            hidden_states: `(B, T, E)`, the projected features.
            attention_mask: `(B, T)`, true where a frame is valid.
        """
        masks = self._attention_masks(hidden_states, attention_mask)
        if attention_mask is not None:
            hidden_states = hidden_states.masked_fill(~attention_mask[..., None], 0)
        hidden_states = self.add_positions(hidden_states)
        states, attentions = [hidden_states], []
        for index in self.active_layers:
            if self.training and self.config.layerdrop > 0 and torch.rand([]) < self.config.layerdrop:
                states.append(hidden_states)
                attentions.append(None)
                continue
            hidden_states, weights = self.run_layer(index, hidden_states, masks[index])
            states.append(hidden_states)
            attentions.append(weights)
        if self.config.do_stable_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def add_positions(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the first layer reads, of the projected features: both `(B, T, E)`."""
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        if not self.config.do_stable_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        return self.dropout(hidden_states)

    def run_layer(
        self, index: int, hidden_states: torch.Tensor, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Layer `index` on `(B, T, E)`, with the `attention_options` of its window."""
        layer = self.layers[index]
        if layer.active is not None:
            options = options | {"active": layer.active}
        return layer(hidden_states, **options)

    def _attention_masks(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> list[dict]:
        """Keyword arguments of every layer's attention; layers of the same window share one mask."""
        config = self.config
        if config.is_heterogeneous and "attention_window" in config.per_layer_attributes:
            windows = [shape.attention_window for shape in config.layer_shapes]
        else:
            windows = [config.attention_window] * len(self.layers)
        shared = {window: self.attention_options(window, hidden_states, attention_mask) for window in set(windows)}
        return [shared[window] for window in windows]

    def attention_options(
        self, window: int | None, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> dict:
        """Keyword arguments of the attention of a layer with `window`; `attention_mask` as in `forward`."""
        if window is None:
            mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)
            return {"attention_mask": mask}
        reach = window // 2
        window_config = _WindowConfig(self.config._attn_implementation, reach)
        mask = create_bidirectional_sliding_window_mask(window_config, hidden_states, attention_mask)
        # transformers' flash attention looks `sliding_window - 1` frames to either side; the masks above, `reach`.
        return {"attention_mask": mask, "sliding_window": reach + 1}


def _valid_samples(attention_mask: torch.Tensor) -> torch.Tensor:
    """`(B, samples)` to `(B,)`. Counted as integers: a sum in half precision would round, and overflow after 4 s."""
    return attention_mask.ne(0).sum(-1)


class LightHubertPreTrainedModel(PreTrainedModel):
    config_class = LightHubertConfig
    config: LightHubertConfig
    base_model_prefix = "lighthubert"
    main_input_name = "input_values"
    input_modalities = "audio"
    _no_split_modules = ["LightHubertEncoderLayer"]  # noqa: RUF012 (transformers declares it without annotation)
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True

    # The losses here are means already: the Trainer must divide them by its accumulation steps itself.
    accepts_loss_kwargs = False

    # Names of the linear layers of a head that read the encoder's hidden states: their input follows the active width.
    _hidden_state_readers: tuple[str, ...] = ()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, WeightNormConv1d):
            norm = module.parametrizations["weight"]
            init.normal_(norm.original1, 0.0, (4 / (module.kernel_size * norm.original1.shape[0])) ** 0.5)
            init.copy_(norm.original0, torch.linalg.vector_norm(norm.original1, dim=(0, 1), keepdim=True))
            init.zeros_(module.bias)
        elif isinstance(module, LightHubertModel):
            init.uniform_(module.masked_spec_embed)
        elif isinstance(module, AMSoftmaxLoss):
            init.normal_(module.weight)
        elif getattr(module, "layer_weights", None) is not None:
            init.constant_(module.layer_weights, 1.0 / len(module.layer_weights))

    def _finish(self) -> None:
        """The end of every constructor: the default subnet active, weights initialised."""
        if self.config.search_space is not None:
            self._set_active(Subnet.from_dict(self.config.default_subnet))
        self.post_init()

    @property
    def padding_invariant(self) -> bool:
        """Whether a row of a padded batch, with an `attention_mask`, comes out as it would alone, on its valid frames.

        Always: a group norm's statistics are of a row's own samples, and attention sees valid frames only.
        """
        return True

    @property
    def search_space(self) -> SearchSpace | None:
        """The subnets this model offers; `None` if it is static."""
        return None if self.config.search_space is None else SearchSpace.from_dict(self.config.search_space)

    @property
    def active_subnet(self) -> Subnet:
        """The architecture `forward` runs at present."""
        return self.base_model._active_subnet  # pyrefly: ignore[bad-return]

    def set_active_subnet(self, subnet: Subnet | Mapping[str, Any]) -> None:
        """Make `forward` run `subnet`. Weights and config stay as they are. A `forward` that runs in another thread
        meanwhile ends in a `RuntimeError`.

        Any subnet that can be cut from the weights is accepted, also one outside `search_space`; only those inside
        were trained for.

        Raises:
            ValueError: if the model is static or the subnet does not fit its weights.
        """
        subnet = self._checked_subnet(subnet)
        with activation_lock():
            self._set_active(subnet)

    def _checked_subnet(self, subnet: Subnet | Mapping[str, Any]) -> Subnet:
        if self.config.search_space is None:
            raise ValueError(
                "this model is static (its config has no search_space), so no subnet can be activated; "
                "load the supernet it was extracted from"
            )
        self._check_no_adapters()
        subnet = Subnet.of(subnet)
        self.config.check_subnet(subnet)
        return subnet

    def _check_no_adapters(self) -> None:
        """Adapters have the full sizes of the layers they stand for; those of a supernet run parts of themselves."""
        if any("base_layer" in module._modules for module in self.modules()):
            raise ValueError(
                "adapters such as LoRA do not fit a supernet, whose layers run in part; extract a subnet first "
                "(extract_subnet, `lighthubert extract`) and add them to that"
            )

    def _set_active(self, subnet: Subnet) -> None:
        self.base_model._set_active(subnet)
        for name in self._hidden_state_readers:
            getattr(self, name).set_active(in_ranges=((0, subnet.hidden_size),))

    @contextmanager
    def subnet_activated(self, subnet: Subnet | Mapping[str, Any]) -> Iterator[None]:
        """Run a block with `subnet` active and return to the present one afterwards."""
        before = self.active_subnet
        self.set_active_subnet(subnet)
        try:
            yield
        finally:
            self.set_active_subnet(before)

    def extract_subnet(self, subnet: Subnet | Mapping[str, Any] | None = None) -> Self:
        """A static model of the same class that computes what `subnet` (default: the active one) computes.

        The weights are copies; the supernet is left untouched. Codebooks that were made of this subnet go with it.
        """
        from .extraction import extract_subnet

        static = extract_subnet(self, self.active_subnet if subnet is None else subnet)
        static.codebooks = carried(self, static.active_subnet)
        return static

    def to_hubert(self) -> PreTrainedModel:
        """The same model as a plain `HubertModel`, `HubertForCTC`, …, zero-padded where its layers differ.

        Raises:
            ValueError: if no plain HuBERT can compute the same, with the reason.
        """
        from .extraction import to_hubert

        plain = to_hubert(self)
        say_left_behind(self)
        return plain

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.PreTrainedModel.from_pretrained`, with the codebooks that lie beside the weights."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            commit = getattr(model.config, "_commit_hash", None)
            options = kwargs | ({"revision": commit} if commit else {})
            model.codebooks = published_codebooks(pretrained_model_name_or_path, **options)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `transformers.PreTrainedModel.save_pretrained`, with the codebooks that are still right."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True) and self.codebooks and (kept := still_right(self)):
            save_codebooks(kept, save_directory)

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """The codebooks of discrete units that were made of this model's features, by name (`layer6-500`)."""
        return self.__dict__.setdefault("_codebooks", {})

    @codebooks.setter
    def codebooks(self, codebooks: Mapping[str, Codebook]) -> None:
        self.__dict__["_codebooks"] = dict(codebooks)

    def encode_units(
        self, audio: Any, layer: int | None = None, clusters: int | None = None, durations: bool = False
    ) -> Any:
        """Discrete units of speech: the nearest centroid of every frame of 20 ms.

        Args:
            audio (`torch.Tensor` or `np.ndarray` of shape `(samples,)`, or a list of such):
                16 kHz mono waveforms as recorded, floating point. They are normalised here, if the codebook says so.
            layer, clusters: which codebook, if the model has several.
            durations: take repeats together, and return how many frames each unit lasts, too.

        Returns:
            `torch.LongTensor` of shape `(frames,)`; with `durations` two of shape `(runs,)`; for a list a list.

        Raises:
            ValueError: if the model has no such codebook, or the audio is no waveform.
        """
        return encode_units(self, audio, layer=layer, clusters=clusters, durations=durations)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """As `transformers.PreTrainedModel.push_to_hub`, with all that a reader needs, in one commit.

        Takes `card` (`lighthubert_hf.hub.card.CardFacts`) and `processor`, too; see
        `lighthubert_hf.hub.publishing.push_model`. Where that is not installed it is transformers' own.
        """
        if importlib.util.find_spec("lighthubert_hf") is None:  # this code came with the model
            return super().push_to_hub(repo_id, **kwargs)
        return importlib.import_module("lighthubert_hf.hub.publishing").push_model(self, repo_id, **kwargs)

    def freeze_feature_encoder(self) -> None:
        """Keep the convolutional front end as it is during training."""
        self.base_model.feature_extractor.freeze()

    def freeze_base_model(self) -> None:
        """Train the head only."""
        self.base_model.requires_grad_(False)

    def _get_feat_extract_output_lengths(self, input_lengths: Lengths) -> Lengths:
        """Frames the front end makes of `input_lengths` samples; 0 for less than one receptive field."""
        return conv_output_lengths(input_lengths, self.config)

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """`(B, samples)` to `(B, frames)`: a frame is valid if all the samples it sees are. Rows may have none."""
        lengths = conv_output_lengths(_valid_samples(attention_mask), self.config)
        return torch.arange(feature_vector_length, device=attention_mask.device) < lengths[:, None]


class LightHubertModel(LightHubertPreTrainedModel):
    """The encoder: 16 kHz waveforms in, one vector per 20 ms out."""

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.feature_extractor = FrontEnd(config)
        self.feature_projection = LightHubertFeatureProjection(config)
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = LightHubertEncoder(config)
        self._active_subnet = config.architecture
        self.activations = 0  # how often another subnet was activated
        self._finish()

    def _set_active(self, subnet: Subnet) -> None:
        subnet = self.config.canonical(subnet)
        channels = self.config.conv_channels(subnet)
        if self.config.has_elastic_front_end:
            self.feature_extractor.set_active(channels)
        self.feature_projection.set_active(channels[-1], subnet.hidden_size)
        self.encoder.set_active(subnet)
        self.activations += subnet != self._active_subnet
        self._active_subnet = subnet

    def active_state(self) -> dict[str, torch.Tensor]:
        return {"masked_spec_embed": self.masked_spec_embed[: self._active_subnet.hidden_size]}

    @of_one_subnet
    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, samples)`):
                16 kHz mono waveforms, normalised by the feature extractor saved with the model. At least one
                receptive field (400 samples) long.
            attention_mask (`torch.Tensor` of shape `(batch_size, samples)`, *optional*):
                1 for samples, 0 for padding on the right. A row of less than one receptive field has no valid frame;
                its outputs are finite and mean nothing.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, frames)`, *optional*):
                Frames to replace by the mask embedding. Without it SpecAugment chooses, in training only.
            output_attentions (`bool`, *optional*): return attention weights; eager attention only.
            output_hidden_states (`bool`, `int` or list of `int`, *optional*): return all or some hidden states:
                index 0 is the input of the first layer, the others the layers' outputs.

        NaN and Inf samples spread within their own row only.
        """
        features = self.extract_features(input_values, attention_mask)
        return self.encode(
            features,
            attention_mask,
            mask_time_indices,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )

    @of_one_subnet
    def extract_features(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The convolutional front end alone: `(B, samples)` to `(B, frames, channels)`.

        The same for every subnet, unless the search space has a choice of channels.

        Raises:
            ValueError: also if finite samples overflow float16 on the way.
        """
        self._check_input(input_values, attention_mask)
        samples = input_values
        input_values = input_values.to(self.masked_spec_embed.dtype)  # stays a plain tensor if layers are quantised
        lengths = None if attention_mask is None else _valid_samples(attention_mask)
        features = self.feature_extractor(input_values, lengths)
        if features.dtype == torch.float16 and not is_recorded():  # looking at values would break a graph
            self._check_overflow(samples, features)
        return features

    @staticmethod
    def _check_overflow(samples: torch.Tensor, features: torch.Tensor) -> None:
        """Rows with NaN or Inf samples have features to match; others must not."""
        wrong = samples.isfinite().all(-1) & ~features.isfinite().all(-1).all(-1)
        if wrong.any():
            raise ValueError(
                f"samples of up to {samples[wrong].abs().max().item():g} overflow float16 in the front end; normalise "
                "the audio, as the feature extractor saved with the model does, or load with dtype=torch.bfloat16"
            )

    @of_one_subnet
    def encode(
        self,
        features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
    ) -> BaseModelOutput:
        """Everything behind `extract_features`. `attention_mask` is over samples, as in `forward`."""
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if attention_mask is not None:
            attention_mask = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        hidden_states = self.feature_projection(features)
        hidden_states = self._mask_hidden_states(hidden_states, mask_time_indices, attention_mask)
        selected = selected_hidden_states(output_hidden_states)
        outputs = encode_by_length(
            self.encoder,
            hidden_states,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=selected is not None or bool(output_hidden_states),
        )
        if selected is not None:
            states = outputs.hidden_states
            indices = resolve_hidden_states_indices(self, selected, num_hidden_states=len(states))
            outputs.hidden_states = tuple(state if i in indices else None for i, state in enumerate(states))
        return outputs

    def _check_input(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        if input_values.ndim != 2:
            raise ValueError(
                f"input_values must be (batch, samples), got shape {tuple(input_values.shape)}; "
                "mix channels down and add a batch dimension"
            )
        if not input_values.is_floating_point():
            raise ValueError(
                f"input_values must be floating point, got {input_values.dtype}; the feature extractor converts audio"
            )
        if attention_mask is not None and attention_mask.shape != input_values.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_values {tuple(input_values.shape)}, "
                f"got {tuple(attention_mask.shape)}"
            )
        if input_values.shape[0] == 0:
            raise ValueError("input_values are an empty batch; pass at least one row")
        field = receptive_field(self.config)
        if input_values.shape[1] < field:
            raise ValueError(
                f"input_values are {input_values.shape[1]} samples long, one frame needs {field}; "
                "pad them and pass an attention_mask"
            )

    def _mask_hidden_states(
        self,
        hidden_states: torch.Tensor,
        mask_time_indices: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Replace the given frames by the mask embedding; in training without given frames, SpecAugment.

        Spans are clamped to the clip, so that short clips are masked rather than refused.
        """
        config, (batch, frames, channels) = self.config, hidden_states.shape
        augment = self.training and config.apply_spec_augment
        if mask_time_indices is None and augment and config.mask_time_prob > 0:
            mask_time_indices = self._draw_spans(
                (batch, frames),
                config.mask_time_prob,
                config.mask_time_length,
                config.mask_time_min_masks,
                attention_mask,
            ).to(hidden_states.device)
        if mask_time_indices is not None:
            embedding = self.masked_spec_embed[:channels].to(hidden_states.dtype)
            hidden_states = torch.where(mask_time_indices[..., None], embedding, hidden_states)
        if augment and config.mask_feature_prob > 0:
            mask = self._draw_spans(
                (batch, channels), config.mask_feature_prob, config.mask_feature_length, config.mask_feature_min_masks
            )
            hidden_states = hidden_states.masked_fill(mask[:, None].to(hidden_states.device), 0)
        return hidden_states

    @staticmethod
    def _draw_spans(
        shape: tuple[int, int],
        probability: float,
        length: int,
        min_masks: int,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        length = min(length, shape[1])
        spans = _compute_mask_indices(shape, probability, length, attention_mask=attention_mask, min_masks=min_masks)
        return torch.from_numpy(spans)


@dataclass
class LightHubertForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `targets`): mean L1 over valid frames.
        predictions (`torch.FloatTensor` of shape `(batch_size, frames, target_size)`): the head's output.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, frames, hidden_size)`): the encoder's output.
        hidden_states, attentions: as in `modeling_outputs.BaseModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class LightHubertForPreTraining(LightHubertPreTrainedModel):
    """The encoder with the distillation head: a bias-free linear map from the last layer that ran to the target."""

    _hidden_state_readers = ("prediction_head",)

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.lighthubert = LightHubertModel(config)
        self.prediction_head = _prediction_head(config)
        self._finish()

    @of_one_subnet
    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LightHubertForPreTrainingOutput:
        """`targets`: `(batch_size, frames, target_size)`, what to predict; see `LightHubertModel` for the others."""
        outputs = self.lighthubert(input_values, attention_mask, mask_time_indices, return_dict=True, **kwargs)
        predictions = self.prediction_head(outputs.last_hidden_state)
        loss = None
        if targets is not None:
            precise = torch.promote_types(predictions.dtype, torch.float32)
            error = (predictions.to(precise) - targets.to(precise)).abs().mean(-1)
            if attention_mask is None:
                loss = error.mean()
            else:
                valid = self._get_feature_vector_attention_mask(error.shape[1], attention_mask)
                loss = torch.where(valid, error, 0).sum() / valid.sum().clamp(min=1)
        return LightHubertForPreTrainingOutput(
            loss=loss,
            predictions=predictions,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class LightHubertHeadModel(LightHubertPreTrainedModel):
    """What the task heads share: the encoder; with `use_weighted_layer_sum`, a learned mix of its hidden states."""

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.lighthubert = LightHubertModel(config)
        self.layer_weights = None
        if config.use_weighted_layer_sum:
            num_states = config.num_hidden_layers + 1
            self.layer_weights = nn.Parameter(torch.full((num_states,), 1 / num_states))

    def active_state(self) -> dict[str, torch.Tensor]:
        return {} if self.layer_weights is None else {"layer_weights": self._active_layer_weights()}

    def mix(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean of all hidden states by the learned weights of their layers."""
        weights = self._active_layer_weights().softmax(-1)
        return sum(w * state for w, state in zip(weights, states, strict=True))  # pyrefly: ignore[bad-return]

    def _active_layer_weights(self) -> torch.Tensor:
        layers = self.lighthubert.encoder.active_layers
        if len(layers) + 1 == len(self.layer_weights):
            return self.layer_weights  # pyrefly: ignore[bad-return]
        return self.layer_weights[[0, *(index + 1 for index in layers)]]

    def _encode(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, BaseModelOutput]:
        """What the head reads, `(B, T, E)`, and the encoder's outputs as the caller asked for them."""
        if self.layer_weights is None:
            kwargs["output_hidden_states"] = output_hidden_states
            outputs = self.lighthubert(input_values, attention_mask, return_dict=True, **kwargs)
            return outputs.last_hidden_state, outputs
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.lighthubert(input_values, attention_mask, output_hidden_states=True, return_dict=True, **kwargs)
        states = outputs.hidden_states
        mixed = self.mix(states)
        selected = selected_hidden_states(output_hidden_states)
        if selected is not None:
            indices = resolve_hidden_states_indices(self, selected, num_hidden_states=len(states))
            outputs.hidden_states = tuple(state if i in indices else None for i, state in enumerate(states))
        elif not output_hidden_states:
            outputs.hidden_states = None
        return mixed, outputs  # pyrefly: ignore[bad-return]

    def _frame_mask(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Valid frames, `(B, T)`."""
        if attention_mask is None:
            return torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        return self._get_feature_vector_attention_mask(hidden_states.shape[1], attention_mask)


class LightHubertForCTC(LightHubertHeadModel):
    """The encoder with a linear layer for connectionist temporal classification (speech recognition)."""

    _hidden_state_readers = ("lm_head",)

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = _linear(config)(config.hidden_size, config.vocab_size)
        self._finish()

    @of_one_subnet
    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutput:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, target_length)`, *optional*): token ids; -100 and
                `pad_token_id`, the blank, are padding. The loss is `config.ctc_loss_reduction`-reduced; rows that
                cannot be aligned (more labels than frames) count as zero with `config.ctc_zero_infinity`.

        See `LightHubertModel` for the others. The logits of padding say blank. Samples too few for a frame have no
        logits: a recording cut into chunks may end in such a one.
        """
        if labels is None and input_values.ndim == 2 and 0 < input_values.shape[1] < receptive_field(self.config):
            return CausalLMOutput(logits=self.lm_head.weight.new_empty(len(input_values), 0, self.config.vocab_size))
        if labels is not None and not torch.compiler.is_compiling():  # looking at values would break the graph
            self._check_labels(labels)
        hidden_states, outputs = self._encode(input_values, attention_mask, **kwargs)
        logits = self.lm_head(self.dropout(hidden_states))
        valid = self._frame_mask(logits, attention_mask)
        if attention_mask is not None:
            # Padding says nothing, so that the text read off a padded batch is that of each utterance alone.
            letters = torch.arange(logits.shape[-1], device=logits.device) != self.config.pad_token_id
            logits = logits.masked_fill(~valid[..., None] & letters, -1e4)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                logit_lengths=valid.sum(-1),
                blank_token_id=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        return CausalLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _check_labels(self, labels: torch.Tensor) -> None:
        wrong = labels[(labels != -100) & ((labels < 0) | (labels >= self.config.vocab_size))]
        if wrong.numel():
            raise ValueError(
                f"label {wrong[0].item()} is outside the vocabulary of {self.config.vocab_size}; "
                "set vocab_size to the tokenizer's size and mark padding by -100"
            )


class LightHubertForSequenceClassification(LightHubertHeadModel):
    """The encoder with a classifier of whole utterances: projection, mean over valid frames, linear layer."""

    _hidden_state_readers = ("projector",)

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.projector = _linear(config)(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self._finish()

    @of_one_subnet
    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """`labels`: class indices `(batch_size,)`. Rows without a valid frame pool to zero."""
        hidden_states, outputs = self._encode(input_values, attention_mask, **kwargs)
        hidden_states = self.projector(hidden_states)
        valid = self._frame_mask(hidden_states, attention_mask)
        summed = hidden_states.masked_fill(~valid[..., None], 0).sum(1)
        logits = self.classifier(summed / valid.sum(1, keepdim=True).clamp(min=1))
        loss = None if labels is None else F.cross_entropy(logits, labels.view(-1))
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LightHubertForAudioFrameClassification(LightHubertHeadModel):
    """The encoder with a linear classifier of every frame (diarisation, voice activity)."""

    _hidden_state_readers = ("classifier",)

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.classifier = _linear(config)(config.hidden_size, config.num_labels)
        self._finish()

    @of_one_subnet
    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """`labels`: class indices `(batch_size, frames)`, -100 ignored, for one class a frame (cross entropy); or 0/1
        of shape `(batch_size, frames, num_labels)` for any number of classes at once (binary cross entropy, padding
        left out)."""
        hidden_states, outputs = self._encode(input_values, attention_mask, **kwargs)
        logits = self.classifier(hidden_states)
        loss = None
        if labels is not None:
            valid = self._frame_mask(hidden_states, attention_mask)
            if labels.ndim == 3:
                loss = F.binary_cross_entropy_with_logits(logits[valid], labels[valid].to(logits.dtype))
            else:
                loss = F.cross_entropy(logits[valid], labels[valid], ignore_index=-100)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LightHubertForXVector(LightHubertHeadModel):
    """The encoder with an x-vector head for speaker verification: TDNN layers, statistics pooling, AM-softmax loss."""

    _hidden_state_readers = ("projector",)

    def __init__(self, config: LightHubertConfig):
        super().__init__(config)
        self.projector = _linear(config)(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = nn.ModuleList(TDNNLayer(config, i) for i in range(len(config.tdnn_dim)))
        self.feature_extractor = nn.Linear(config.tdnn_dim[-1] * 2, config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmaxLoss(config.xvector_output_dim, config.num_labels)
        self._finish()

    @of_one_subnet
    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XVectorOutput:
        """`labels`: speaker indices `(batch_size,)`. Clips shorter than the TDNN's context are zero-padded to it."""
        hidden_states, outputs = self._encode(input_values, attention_mask, **kwargs)
        hidden_states = self.projector(hidden_states)
        valid = self._frame_mask(hidden_states, attention_mask)
        context = sum((k - 1) * d for k, d in zip(self.config.tdnn_kernel, self.config.tdnn_dilation, strict=True))
        hidden_states = hidden_states.masked_fill(~valid[..., None], 0)
        hidden_states = F.pad(hidden_states, (0, 0, 0, max(0, context + 1 - hidden_states.shape[1])))
        for layer in self.tdnn:
            hidden_states = layer(hidden_states)
        lengths = (valid.sum(-1) - context).clamp(min=1)
        embeddings = self.feature_extractor(self._pool_statistics(hidden_states, lengths))
        logits = self.classifier(embeddings)
        loss = None if labels is None else self.objective(logits, labels)
        return XVectorOutput(
            loss=loss,
            logits=logits,
            embeddings=embeddings,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @staticmethod
    def _pool_statistics(hidden_states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Mean and (unbiased) standard deviation over the first `lengths` frames: `(B, T, C)` to `(B, 2C)`."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.promote_types(dtype, torch.float32))  # squares overflow in half
        valid = torch.arange(hidden_states.shape[1], device=lengths.device) < lengths[:, None]
        count = lengths[:, None].to(hidden_states.dtype)
        mean = hidden_states.masked_fill(~valid[..., None], 0).sum(1) / count
        centred = (hidden_states - mean[:, None]).masked_fill(~valid[..., None], 0)
        variance = centred.square().sum(1) / (count - 1).clamp(min=1)
        # The square root's gradient is infinite at zero, which a clip of one frame reaches.
        return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], -1).to(dtype)


__all__ = [
    "LightHubertForAudioFrameClassification",
    "LightHubertForCTC",
    "LightHubertForPreTraining",
    "LightHubertForSequenceClassification",
    "LightHubertForXVector",
    "LightHubertModel",
    "LightHubertPreTrainedModel",
]
