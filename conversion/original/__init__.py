"""The original LightHuBERT's checkpoints: its names and config stand here and nowhere else."""
