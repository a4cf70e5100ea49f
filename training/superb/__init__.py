"""How good are a frozen model's features? A harness in the manner of SUPERB: ten tasks, one small head each.

from lighthubert_hf.training.superb.harness import evaluate_model
"""
