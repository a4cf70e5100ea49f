"""The tiny supernet of most tests."""

from lighthubert_hf import SearchSpace

TINY_SPACE = SearchSpace(
    hidden_size=(32, 48, 64), num_attention_heads=(1, 2, 4), ffn_ratio=(1.5, 2.0, 3.0), num_hidden_layers=(2, 3, 4)
)
TINY = {
    "search_space": TINY_SPACE,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
    "classifier_proj_size": 24,
    "target_size": 20,
    "tdnn_dim": (16, 16, 24),
    "tdnn_kernel": (3, 3, 1),
    "tdnn_dilation": (1, 2, 1),
    "xvector_output_dim": 16,
}
