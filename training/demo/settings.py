"""How large every part of the demo is, and the shape of its supernet."""

from dataclasses import dataclass, replace

NUM_TARGET_LAYERS = 3  # of the demo teacher's 4: two thirds, as 8 of 12 in the paper
SPACE = {
    "hidden_size": [64, 96, 128],
    "num_attention_heads": [1, 2],
    "ffn_ratio": [2, 3, 4],
    "num_hidden_layers": [3, 4],
}
SUPERNET = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "conv_dim": [64] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
}


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of every part. The defaults take at most 12 minutes on 2 cores; `tiny` only shows that the parts meet."""

    teacher: str | None = None
    dataset: str | None = None
    text_column: str | None = "text"
    corpus_minutes: float = 80.0
    held_out_minutes: float = 3.0
    teacher_steps: int = 220
    teacher_ctc_steps: int = 450
    stage1_steps: int = 250
    stage2_steps: int = 450
    batch_seconds: float = 32.0
    search_trials: int = 100
    random_subnets: int = 8
    labelled_minutes: float = 10.0
    ctc_steps: int = 200
    seed: int = 0

    @classmethod
    def tiny(cls, **changes) -> "DemoSettings":
        return replace(
            cls(
                corpus_minutes=1.0,
                held_out_minutes=0.2,
                teacher_steps=2,
                teacher_ctc_steps=2,
                stage1_steps=2,
                stage2_steps=2,
                batch_seconds=10.0,
                search_trials=12,
                random_subnets=2,
                labelled_minutes=0.3,
                ctc_steps=2,
            ),
            **changes,
        )
