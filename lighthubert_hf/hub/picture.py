"""A small picture of an encoder, as SVG: no library draws it and the Hub shows it as it is (it renders no Mermaid)."""

from collections.abc import Sequence

_LABEL, _BARS, _ROW, _TOP = 92, 300, 22, 46
_ATTENTION, _FFN, _CONVOLUTION, _INK = "#4c72b0", "#dd8452", "#55a868", "#333333"


def architecture_svg(
    hidden_size: int, layers: Sequence[tuple[int, int]], convolutions: Sequence[tuple[int, int, int]]
) -> str:
    """Every layer a row with two bars to scale, the first layer at the bottom, the convolutions below.

    Convolutions of unequal channels are a row each, with a bar on the same scale.

    Args:
        hidden_size: width of the residual stream.
        layers: attention width and FFN units of every layer.
        convolutions: (channels, kernel, stride) of every convolution of the front end.
    """
    channels = [channels for channels, _, _ in convolutions]
    unequal = channels if len(set(channels)) > 1 else []
    widest = max([*(max(pair) for pair in layers), *unequal])
    height = _TOP + _ROW * (len(layers) + len(unequal)) + 34
    width = _LABEL + _BARS + 130
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{len(layers)} layers, {hidden_size} wide</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(8, 18, f"{len(layers)} transformer layers, residual stream {hidden_size} wide"),
        _text(_LABEL, 36, "attention width", _ATTENTION),
        _text(_LABEL + 110, 36, "FFN units", _FFN),
    ]
    for row, (index, (attention, ffn)) in enumerate(reversed(list(enumerate(layers)))):
        y = _TOP + row * _ROW
        parts.append(_text(8, y + 13, f"layer {index}"))
        for offset, value, colour in ((0, attention, _ATTENTION), (9, ffn, _FFN)):
            bar = max(round(_BARS * value / widest), 1)
            parts.append(f'<rect x="{_LABEL}" y="{y + offset}" width="{bar}" height="8" fill="{colour}"/>')
        parts.append(_text(_LABEL + _BARS + 10, y + 13, f"{attention} · {ffn}"))
    for row, (index, count) in enumerate(reversed(list(enumerate(unequal))), len(layers)):
        y = _TOP + row * _ROW
        bar = max(round(_BARS * count / widest), 1)
        parts.append(_text(8, y + 13, f"convolution {index}"))
        parts.append(f'<rect x="{_LABEL}" y="{y + 4}" width="{bar}" height="8" fill="{_CONVOLUTION}"/>')
        parts.append(_text(_LABEL + _BARS + 10, y + 13, str(count)))
    shown = "–".join(map(str, dict.fromkeys((min(channels), max(channels)))))
    parts.append(_text(8, height - 14, f"front end: {len(convolutions)} convolutions, {shown} channels"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: int, y: int, text: str, colour: str = _INK) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}">{text}</text>'
