"""Checkpoints in and out: the original's files, the HuBERT family, ONNX."""
