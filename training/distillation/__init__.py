"""Distillation of a supernet from a frozen teacher."""
