"""Distillation, data streaming, scoring of subnets and fine-tuning."""

from lighthubert_hf.extras import require

require("train", what="training and evaluation")
