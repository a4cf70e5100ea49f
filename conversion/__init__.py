"""Checkpoints in and out: the original's files, the HuBERT family, plain HuBERT, ONNX."""

from .checkpoints.errors import ConversionError
from .converter import ConversionReport, convert
from .onnx import OnnxReport, export_onnx
from .plain_hubert import save_plain_hubert

__all__ = [
    "ConversionError",
    "ConversionReport",
    "OnnxReport",
    "convert",
    "export_onnx",
    "save_plain_hubert",
]
