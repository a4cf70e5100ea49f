"""Codebooks of discrete units as files: in model folders, on the Hub, and from other programs."""
