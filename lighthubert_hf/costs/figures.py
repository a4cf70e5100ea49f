"""Numbers as people read them, the same everywhere: 26.9M, 119k."""

from collections.abc import Sequence

_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def human(number: float) -> str:
    """A count with three digits and a unit: 26.9M, 3.61G, 740k, 512."""
    for unit, size in _UNITS:
        if number >= size:
            digits = number / size
            return f"{digits:.0f}{unit}" if digits >= 100 else f"{digits:.3g}{unit}"
    return f"{number:.0f}"


def human_seconds(seconds: float) -> str:
    """A length of time: 15.3 s, 12.5 min, 3.2 h."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def size_name(parameters: int, digits: int | None = None) -> str:
    """A size as it stands in a model's name: 27M, 1.3M, 119k.

    Args:
        parameters: how many.
        digits: after the point; by default one below ten million, else none.
    """
    unit, size = ("M", 1e6) if parameters >= 999_500 else ("k", 1e3)
    if digits is None:
        digits = 1 if 999_500 <= parameters < 9_950_000 else 0
    number = f"{parameters / size:.{digits}f}"
    return (number.rstrip("0").rstrip(".") if digits else number) + unit


def size_names(parameters: Sequence[int], keys: Sequence[str]) -> list[str]:
    """Names by size, such as "27M": as short as they can be and still differ, then with the first digits of `keys`.

    Args:
        parameters: number of parameters of each model.
        keys: something that differs where the models differ, such as `Subnet.key`.
    """
    names = [size_name(count) for count in parameters]
    for digits in (1, 2):
        counts = {one: {c for other, c in zip(names, parameters, strict=True) if other == one} for one in names}
        names = [
            size_name(count, digits) if len(counts[one]) > 1 else one
            for one, count in zip(names, parameters, strict=True)
        ]
    clashing = {one for one in names if names.count(one) > 1}
    return [f"{one}-{key[:6]}" if one in clashing else one for one, key in zip(names, keys, strict=True)]
