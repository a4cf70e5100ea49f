"""Distillation, data streaming, scoring of subnets and fine-tuning."""
