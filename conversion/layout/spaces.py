"""Search spaces for supernets that come without one, and from files."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from lighthubert_hf import SearchSpace
from lighthubert_hf.absent import suggestion
from lighthubert_hf.conversion.checkpoints.errors import ConversionError, first_line
from lighthubert_hf.model.search_space import PUBLISHED_SPACES

# The original's names for the four knobs, in its YAML files.
_ORIGINAL_NAMES = {
    "embed_dim": "hidden_size",
    "heads_num": "num_attention_heads",
    "ffn_ratio": "ffn_ratio",
    "layer_num": "num_hidden_layers",
}


def default_space(
    *,
    num_attention_heads: int,
    head_dim: int,
    intermediate_size: int,
    num_hidden_layers: int,
    groups: int,
) -> SearchSpace:
    """A space for weights of the given sizes, up to all of them: for HuBERT Base's it is the published `base`.

    Two thirds, five sixths and all of the heads, and the same of the stream; seven eighths and all of the FFN; every
    layer. Widths that the `groups` of the positional convolution do not divide are left out.

    Raises:
        ConversionError: if the groups do not divide the full width.
    """
    width = num_attention_heads * head_dim
    heads = {max(1, round(num_attention_heads * part)) for part in (2 / 3, 5 / 6, 1)}
    widths = {h * head_dim for h in heads if h * head_dim % groups == 0}
    if width not in widths:
        raise ConversionError(f"hidden_size {width} is no multiple of the positional convolution's {groups} groups")
    ratio = intermediate_size / width
    while int(ratio * width) < intermediate_size:  # the division may have been rounded down
        ratio = math.nextafter(ratio, math.inf)
    return SearchSpace(tuple(widths), tuple(heads), (ratio * 7 / 8, ratio), (num_hidden_layers,))


def read_space(source: SearchSpace | Mapping | str | Path) -> SearchSpace:
    """A search space as it is, as a mapping, by the name of a published one, or from a JSON or YAML file.

    The names are "small", "base", and, with a choice of channels in the front end, "small_elastic" and "base_elastic".
    The file holds the choices, or a mapping that has them under `search_space`, as a supernet's config.json and
    the original's `config/supernet/*.yaml` do; the names are ours or the original's.

    Raises:
        FileNotFoundError: if there is no such file.
        ConversionError: if it holds no search space.
    """
    if isinstance(source, SearchSpace):
        return source
    if not isinstance(source, Mapping) and str(source) in PUBLISHED_SPACES and not Path(source).exists():
        return PUBLISHED_SPACES[str(source)]()
    if isinstance(source, str | Path) and not Path(source).is_file():
        close = difflib.get_close_matches(str(source), PUBLISHED_SPACES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else suggestion(source) or "check the path"
        raise FileNotFoundError(f"search space {str(source)!r} is not {', '.join(PUBLISHED_SPACES)} or a file; {hint}")
    where = "the search space"
    if not isinstance(source, Mapping):
        where = str(source)
        try:
            source = yaml.safe_load(Path(source).read_text(encoding="utf-8"))  # JSON is YAML
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConversionError(f"{where} is neither JSON nor YAML: {first_line(error)}") from None
    data = source.get("search_space", source) if isinstance(source, Mapping) else source
    try:
        if isinstance(data, Mapping) and "embed_dim" in data:
            data = _renamed(data)
        return SearchSpace.from_dict(data)
    except ValueError as error:
        raise ConversionError(f"{where} holds no search space: {first_line(error)}") from None


def _renamed(data: Mapping) -> dict:
    """The original's names to ours. Its attention width says nothing new: it is 64 times the number of heads."""
    unknown = data.keys() - _ORIGINAL_NAMES.keys() - {"atten_dim"}
    if unknown:
        raise ValueError(f"unknown choices {sorted(map(str, unknown))}; known: {sorted(_ORIGINAL_NAMES)}")
    return {ours: data.get(theirs, ()) for theirs, ours in _ORIGINAL_NAMES.items()}
