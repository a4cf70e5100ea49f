"""The tiny teacher's architecture, and a space of students for it."""

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
}
TINY_SPACE = {
    "hidden_size": [16, 24, 32],
    "num_attention_heads": [1, 2],
    "ffn_ratio": [1.0, 2.0],
    "num_hidden_layers": [2, 3, 4],
}
