"""What the recipes of all kinds of fine-tuning share."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as checked

from lighthubert_hf.training.recipe import (
    CheckpointSection,
    HubSection,
    LoggingSection,
    OptimizerSection,
    Probability,
    ScheduleSection,
    Section,
    Share,
    SourceSection,
    SubnetSection,
)


class PretrainedSection(Section):
    """The encoder to fine-tune: a LightHuBERT (static, or a supernet and one of its subnets) or a plain HuBERT."""

    path: str | None = Field(None, description="folder or Hub id")
    revision: str | None = None
    subnet: Literal["smallest", "default", "largest"] | SubnetSection | None = Field(
        None, description="which subnet of a supernet; None: its default"
    )
    from_scratch: bool = Field(False, description="random weights in the same architecture, as a control")
    random_config: dict[str, Any] | None = Field(
        None, description="instead of `path`: LightHubertConfig fields of a random model, to try a recipe out"
    )
    dropout: Share | None = Field(None, description="every dropout of the model; None: as in its config")
    layerdrop: Share = 0.0

    @checked(mode="after")
    def _one_source(self):
        if (self.path is None) == (self.random_config is None):
            raise ValueError("give exactly one of model.path and model.random_config")
        return self


class LabelledDataSection(Section):
    """Labelled speech. `batch_seconds` is per process and forward, padding included."""

    sources: list[SourceSection] = Field([])
    evaluation: dict[str, list[SourceSection]] = Field(
        {}, description="held-out sets by name; the first is the one training is steered by"
    )
    labelled_minutes: PositiveFloat | None = Field(
        None, description="train on a random part of this length, the same for one seed; None: on everything"
    )
    batch_seconds: PositiveFloat = 60.0
    max_seconds: PositiveFloat = Field(20.0, description="longer utterances are not trained on")
    memory_gb: PositiveFloat = Field(
        4.0, description="training speech of up to this size is kept in memory (115 MB/h)"
    )
    eval_batch_seconds: PositiveFloat = 120.0
    max_eval_examples: PositiveInt | None = None

    @property
    def synthetic(self) -> str | None:
        """The key that asks for synthetic speech instead of sources, if it is set."""
        raise NotImplementedError

    @checked(mode="after")
    def _one_kind(self):
        if bool(self.sources) == (self.synthetic is not None):
            keys = [name for name in type(self).model_fields if name in ("synthetic_minutes", "synthetic_task")]
            raise ValueError(f"give exactly one of data.sources and data.{keys[0]}")
        if self.synthetic is not None and self.evaluation:
            raise ValueError(f"data.{self.synthetic} brings its own held-out sets; remove data.evaluation")
        if self.batch_seconds < self.max_seconds:
            raise ValueError(
                f"data.batch_seconds ({self.batch_seconds:g}) must hold at least one utterance "
                f"of data.max_seconds ({self.max_seconds:g})"
            )
        return self


class FreezingSection(Section):
    """What is not trained, for the whole run and for its beginning."""

    freeze: Literal["none", "feature_encoder", "encoder"] = Field(
        "feature_encoder", description="for the whole run; 'encoder': all but the head"
    )
    head_only_steps: NonNegativeInt = Field(0, description="train nothing but the head for the first steps")
    thaw_layers_every: NonNegativeInt = Field(
        0, description="then thaw the layers from the top, one every so many steps; 0: all at once"
    )

    @checked(mode="after")
    def _something_thaws(self):
        if self.freeze == "encoder" and (self.head_only_steps or self.thaw_layers_every):
            raise ValueError(
                "freezing.freeze=encoder never thaws; for a frozen beginning set freezing.freeze=feature_encoder "
                "beside head_only_steps"
            )
        return self

    @property
    def thaws(self) -> bool:
        return self.head_only_steps > 0 or self.thaw_layers_every > 0


class SpecAugmentSection(Section):
    """Masks on the features in training, see `transformers.HubertConfig`. Spans are clamped to short clips."""

    mask_time_prob: Probability = 0.05
    mask_time_length: PositiveInt = 10
    mask_time_min_masks: NonNegativeInt = 0
    mask_feature_prob: Probability = 0.0
    mask_feature_length: PositiveInt = 10


class LoraSection(Section):
    """Low-rank adapters in the transformer layers; they are merged into the weights that are saved. Needs peft."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Share = 0.0
    target_modules: list[str] = Field(["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"])


class FineTuningSection(Section):
    steps: PositiveInt
    accumulation: PositiveInt = Field(1, description="batches per process and optimiser step")
    head_lr: PositiveFloat | None = Field(
        None, description="learning rate of the new head, on the same schedule; None: optimizer.lr"
    )
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    evaluate_every: PositiveInt | None = Field(None, description="steps; None: only at the end")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="stop after this many evaluations without a better score; the best model is kept"
    )

    @checked(mode="after")
    def _can_stop(self):
        if self.early_stopping_patience is not None and self.evaluate_every is None:
            raise ValueError("training.early_stopping_patience counts evaluations: set training.evaluate_every")
        return self


class FineTuningRecipe(Section):
    """What every kind has; a kind adds `task` and its `data`."""

    name: str
    description: str = ""
    output_dir: str
    seed: NonNegativeInt = 0
    model: PretrainedSection
    data: LabelledDataSection
    freezing: FreezingSection = FreezingSection()
    spec_augment: SpecAugmentSection | None = SpecAugmentSection()
    lora: LoraSection | None = None
    optimizer: OptimizerSection = OptimizerSection(max_grad_norm=1.0)
    schedule: ScheduleSection = ScheduleSection(warmup=0.1, hold=0.4)
    training: FineTuningSection
    checkpoint: CheckpointSection | None = Field(None, description="None: no checkpoint before the end")
    logging: LoggingSection = LoggingSection()
    hub: HubSection | None = Field(None, description="push the result there at the end")

    @checked(mode="after")
    def _consistent(self):
        if self.lora is not None and self.freezing.thaws:
            raise ValueError("lora trains adapters and the head throughout; remove freezing.head_only_steps")
        if self.training.evaluate_every is not None and not (self.data.evaluation or self.data.synthetic):
            raise ValueError("training.evaluate_every needs a held-out set: name one under data.evaluation")
        patience, every = self.training.early_stopping_patience, self.training.evaluate_every
        if patience is not None and self.checkpoint is not None and self.checkpoint.every % every:
            raise ValueError(
                f"with early stopping checkpoint.every ({self.checkpoint.every}) must be a multiple of "
                f"training.evaluate_every ({every}), so that the best model is among the checkpoints"
            )
        return self
