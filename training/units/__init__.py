"""Discrete units of speech: fitting codebooks, applying them, mapping them onto other models, comparing them."""
