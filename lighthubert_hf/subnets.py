"""Which subnet of a supernet is meant: one of three names, a JSON file, JSON, or the subnet itself."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .absent import suggestion
from .files import read_object
from .model.configuration_lighthubert import LightHubertConfig
from .model.search_space import SearchSpace, Subnet


def named_subnets(config: LightHubertConfig) -> dict[str, Subnet]:
    """The subnets of a supernet that have a name: smallest, default and largest."""
    space = SearchSpace.from_dict(config.search_space)
    default = Subnet.from_dict(config.default_subnet)
    return {"smallest": space.smallest(), "default": default, "largest": space.largest()}


def choose_subnet(choice: str | Path | Subnet | Mapping[str, Any], config: LightHubertConfig) -> Subnet:
    """The subnet that a user asked for.

    Args:
        choice: a name, a JSON file of a `Subnet`, its JSON itself, or a `Subnet` or its fields.
        config: the supernet's.

    Raises:
        FileNotFoundError: if it is neither a name nor a file.
        ValueError: if the file or the JSON describes no subnet.
    """
    if not isinstance(choice, str | Path):
        return Subnet.of(choice)
    named = named_subnets(config)
    if choice in named:
        return named[choice]
    if str(choice).lstrip().startswith("{"):
        try:
            return Subnet.from_dict(json.loads(str(choice)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{str(choice)!r} describes no subnet: {error}") from None
    path = Path(choice)
    if not path.is_file():
        close = difflib.get_close_matches(str(choice), named, n=1)
        hint = f"did you mean {close[0]!r}?" if close else suggestion(path) or "check the path"
        raise FileNotFoundError(
            f"subnet {str(choice)!r} is not default, smallest, largest or a JSON file that exists; {hint}"
        )
    try:
        return Subnet.from_dict(read_object(path))
    except ValueError as error:  # of JSON, too
        raise ValueError(f"{path} describes no subnet: {error}") from None
