"""What a model costs: parameters and multiply-accumulates from its config, time and memory measured on this machine."""

from .configuration_lighthubert import LightHubertConfig
from .feature_encoder import conv_output_lengths
from .search_space import Subnet

SAMPLING_RATE = 16_000


def count_parameters(config: LightHubertConfig, subnet: Subnet | None = None) -> int:
    """Parameters of the [`LightHubertModel`] that extracting `subnet` gives: `sum(p.numel() for p in parameters())`.

    Args:
        config: of a supernet or of a static model.
        subnet: `None` for the weights of `config` as they are.
    """
    config, subnet = _checked(config, subnet)
    width, kernel = subnet.hidden_size, config.num_conv_pos_embeddings
    features = config.conv_dim[-1]
    count = _front_end_parameters(config)
    count += (2 * features if config.feat_proj_layer_norm else 0) + features * width + width
    count += width  # mask embedding
    count += width * (width // config.num_conv_pos_embedding_groups) * kernel + width + kernel
    count += 2 * width
    for heads, units in zip(subnet.num_attention_heads, subnet.intermediate_size):
        attention = heads * config.head_dim
        count += 4 * width * attention + 3 * attention + width
        count += 2 * width * units + units + width
        count += 2 * 2 * width
    return count


def paper_parameter_count(config: LightHubertConfig, subnet: Subnet | None = None) -> int:
    """Parameters as the LightHuBERT paper counts them.

    Its mask embedding keeps the supernet's width, the magnitude of the positional convolution's weight norm is left
    out, and so is the prediction head.
    """
    config, subnet = _checked(config, subnet)
    magnitude = config.num_conv_pos_embeddings
    return count_parameters(config, subnet) - magnitude - subnet.hidden_size + config.hidden_size


def count_macs(config: LightHubertConfig, subnet: Subnet | None = None, samples: int = SAMPLING_RATE) -> int:
    """Multiply-accumulates of one forward pass over `samples` samples.

    Counted are convolutions, linear layers and the two matrix products of the attention (over all pairs of frames,
    also where a sliding window masks most of them), as `torch.utils.flop_counter` counts them at 2 FLOP each.
    """
    config, subnet = _checked(config, subnet)
    width = subnet.hidden_size
    frames, macs = _front_end_macs(config, samples)
    macs += frames * config.conv_dim[-1] * width
    macs += frames * width * (width // config.num_conv_pos_embedding_groups) * config.num_conv_pos_embeddings
    for heads, units in zip(subnet.num_attention_heads, subnet.intermediate_size):
        attention = heads * config.head_dim
        macs += 4 * frames * width * attention + 2 * frames**2 * attention
        macs += 2 * frames * width * units
    return macs


def _checked(config: LightHubertConfig, subnet: Subnet | None) -> tuple[LightHubertConfig, Subnet]:
    if subnet is None:
        return config, config.architecture
    config.check_subnet(subnet)
    return config, subnet


def _front_end_parameters(config: LightHubertConfig) -> int:
    count = 0
    for index, (channels, kernel) in enumerate(zip(config.conv_dim, config.conv_kernel)):
        inputs = config.conv_dim[index - 1] if index else 1
        count += inputs * channels * kernel + (channels if config.conv_bias else 0)
        if config.feat_extract_norm == "layer" or index == 0:
            count += 2 * channels
    return count


def _front_end_macs(config: LightHubertConfig, samples: int) -> tuple[int, int]:
    """Frames out, and what they cost."""
    macs = 0
    for index, (channels, kernel) in enumerate(zip(config.conv_dim, config.conv_kernel)):
        inputs = config.conv_dim[index - 1] if index else 1
        macs += conv_output_lengths(samples, config, index + 1) * inputs * channels * kernel
    return conv_output_lengths(samples, config), macs
