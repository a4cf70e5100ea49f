"""The recipes of fine-tuning: what all kinds share, then what each kind adds."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic import model_validator as checked

from lighthubert_hf.training.recipes.sections import (
    CheckpointSection,
    Few,
    HubSection,
    LoggingSection,
    Minutes,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    OptimizerSection,
    PathText,
    PositiveFloat,
    PositiveInt,
    Probability,
    Recipe,
    ScheduleSection,
    Seconds,
    Section,
    Share,
    Size,
    Small,
    SourceSection,
    Speakers,
    SubnetSection,
)


class PretrainedSection(Section):
    """The encoder to fine-tune: a LightHuBERT (static, or a supernet and one of its subnets) or a plain HuBERT."""

    path: PathText | None = Field(None, description="folder or Hub id")
    revision: str | None = None
    subnet: Literal["smallest", "default", "largest"] | SubnetSection | None = Field(
        None, description="which subnet of a supernet; None: its default"
    )
    from_scratch: bool = Field(False, description="random weights in the same architecture, as a control")
    random_config: ModelConfig | None = Field(
        None, description="instead of `path`: LightHubertConfig fields of a random model, to try a recipe out"
    )
    dropout: Share | None = Field(None, description="every dropout of the model; None: as in its config")
    layerdrop: Share = 0.0

    @checked(mode="after")
    def _one_source(self):
        if (self.path is None) == (self.random_config is None):
            raise ValueError("give exactly one of model.path and model.random_config")
        return self


def _is_a_name(text: str) -> str:
    if not (text.isprintable() and text.strip() and len(text) <= 100):
        raise ValueError(f"the name of a held-out set must be one short line of printable text, got {text[:100]!r}")
    return text


SetName = Annotated[str, AfterValidator(_is_a_name)]


class LabelledDataSection(Section):
    """Labelled speech. `batch_seconds` is per process and forward, padding included."""

    sources: list[SourceSection] = Field([])
    evaluation: dict[SetName, list[SourceSection]] = Field(
        {}, description="held-out sets by name; the first is the one training is steered by"
    )
    labelled_minutes: PositiveFloat | None = Field(
        None, description="train on a random part of this length, the same for one seed; None: on everything"
    )
    batch_seconds: Seconds = 60.0
    max_seconds: Seconds = Field(20.0, description="longer utterances are not trained on")
    memory_gb: PositiveFloat = Field(
        4.0, description="training speech of up to this size is kept in memory (115 MB/h)"
    )
    held_out_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="without `evaluation`: keep a random part of the sources, the same for one seed, as held_out"
    )
    eval_batch_seconds: Seconds = 120.0
    max_eval_examples: PositiveInt | None = None
    max_broken_share: Share = Field(0.05, description="a larger share of files that cannot be decoded is an error")

    @property
    def synthetic(self) -> str | None:
        """The key that asks for synthetic speech instead of sources, if it is set."""
        raise NotImplementedError

    @checked(mode="after")
    def _one_kind(self):
        if bool(self.sources) == (self.synthetic is not None):
            keys = [name for name in type(self).model_fields if name in ("synthetic_minutes", "synthetic_task")]
            raise ValueError(f"give exactly one of data.sources and data.{keys[0]}")
        if self.synthetic is not None and (self.evaluation or self.held_out_share):
            raise ValueError(
                f"data.{self.synthetic} brings its own held-out sets; remove data.evaluation and data.held_out_share"
            )
        if self.evaluation and self.held_out_share:
            raise ValueError("give data.evaluation, or data.held_out_share to keep some of the sources; not both")
        if self.batch_seconds < self.max_seconds:
            raise ValueError(
                f"data.batch_seconds ({self.batch_seconds:g}) must hold at least one utterance "
                f"of data.max_seconds ({self.max_seconds:g})"
            )
        return self


class FreezingSection(Section):
    """What is not trained, for the whole run and for its beginning."""

    freeze: Literal["none", "front_end", "encoder"] = Field(
        "front_end", description="for the whole run; 'encoder': all but the head"
    )
    head_only_steps: NonNegativeInt = Field(0, description="train nothing but the head for the first steps")
    thaw_layers_every: NonNegativeInt = Field(
        0, description="then thaw the layers from the top, one every so many steps; 0: all at once"
    )

    @checked(mode="after")
    def _something_thaws(self):
        if self.freeze == "encoder" and (self.head_only_steps or self.thaw_layers_every):
            raise ValueError(
                "freezing.freeze=encoder never thaws; for a frozen beginning set freezing.freeze=front_end "
                "beside head_only_steps"
            )
        return self

    @property
    def thaws(self) -> bool:
        return self.head_only_steps > 0 or self.thaw_layers_every > 0


class SpecAugmentSection(Section):
    """Masks on the features in training, see `transformers.HubertConfig`. Spans are clamped to short clips."""

    mask_time_prob: Probability = 0.05
    mask_time_length: Small = 10
    mask_time_min_masks: Few = 0
    mask_feature_prob: Probability = 0.0
    mask_feature_length: Small = 10


class LoraSection(Section):
    """Low-rank adapters in the transformer layers; they are merged into the weights that are saved. Needs peft."""

    rank: Size = 8
    alpha: PositiveFloat = 16.0
    dropout: Share = 0.0
    target_modules: list[str] = Field(["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"])


class FineTuningSection(Section):
    steps: PositiveInt
    accumulation: Small = Field(1, description="batches per process and optimiser step")
    head_lr: PositiveFloat | None = Field(
        None, description="learning rate of the new head, on the same schedule; None: optimizer.lr"
    )
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    max_skipped_in_a_row: PositiveInt = Field(100, description="stop after this many non-finite steps in a row")
    evaluate_every: PositiveInt | None = Field(None, description="steps; None: only at the end")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="stop after this many evaluations without a better score; the best model is kept"
    )

    @checked(mode="after")
    def _can_stop(self):
        if self.early_stopping_patience is not None and self.evaluate_every is None:
            raise ValueError("training.early_stopping_patience counts evaluations: set training.evaluate_every")
        return self


class FineTuningRecipe(Recipe):
    """What every kind has; a kind adds `task` and its `data`."""

    shipped_in = "finetuning"

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
        held_out = self.data.evaluation or self.data.held_out_share or self.data.synthetic
        if self.training.evaluate_every is not None and not held_out:
            raise ValueError(
                "training.evaluate_every needs a held-out set: name one under data.evaluation, or set "
                "data.held_out_share"
            )
        patience, every = self.training.early_stopping_patience, self.training.evaluate_every
        if patience is not None and self.checkpoint is not None and self.checkpoint.every % every:
            raise ValueError(
                f"with early stopping checkpoint.every ({self.checkpoint.every}) must be a multiple of "
                f"training.evaluate_every ({every}), so that the best model is among the checkpoints"
            )
        return self

    @classmethod
    def variant(cls, data: dict[str, Any]) -> type[Section]:
        """The key `task` (default: ctc) says what else is in a recipe."""
        if cls is not FineTuningRecipe:
            return cls
        task = data.get("task", "ctc")
        if task not in list(KINDS):
            raise ValueError(f"recipe key 'task' must be one of {', '.join(KINDS)}, got {task!r}")
        return KINDS[task]


class TranscriptSection(Section):
    """How transcripts are cleaned, for training and for scoring; in this order. Any whitespace is one space."""

    unicode: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = Field(
        None, description="normal form: one of é as a letter (NFC) and as e and an accent (NFD); NFKC also joins forms"
    )
    case: Literal["lower", "upper"] | None = None
    drop: str = Field("", description="characters to leave out, for example '.,?!'")


class TranscribedDataSection(LabelledDataSection):
    """Speech with transcripts; every source names its `text_column`."""

    synthetic_minutes: Minutes | None = Field(
        None, description="instead of sources and evaluation: minutes of synthetic speech, made at the start"
    )
    vocabulary: PathText | None = Field(
        None,
        description="folder or Hub id whose tokenizer to use (equal to model.path: its head is kept as well); "
        "None: it is built from the transcripts",
    )
    vocabulary_revision: str | None = Field(None, description="of `vocabulary` on the Hub; None: main, or the model's")
    units: Literal["characters", "bpe", "phonemes"] = Field(
        "characters",
        description="of a vocabulary that is built: characters; pieces of words, found by byte-pair encoding; or "
        "phonemes, which the transcripts separate by spaces",
    )
    vocabulary_size: Size | None = Field(None, description="units=bpe: pieces, characters included")
    transcripts: TranscriptSection = TranscriptSection()

    @checked(mode="after")
    def _one_vocabulary(self):
        if self.vocabulary is not None and self.units != "characters":
            raise ValueError(f"data.vocabulary has its own units; remove it to build one of data.units={self.units}")
        if (self.units == "bpe") != (self.vocabulary_size is not None):
            raise ValueError("data.vocabulary_size is the number of pieces of data.units=bpe: give both or neither")
        return self

    @property
    def synthetic(self) -> str | None:
        return None if self.synthetic_minutes is None else "synthetic_minutes"


class DecodingSection(Section):
    """How the final scores are decoded: greedily, or by a prefix beam search with an optional KenLM."""

    kind: Literal["greedy", "beam"] = "greedy"
    beam_width: Small = 32
    language_model: PathText | None = Field(None, description="a KenLM file, .arpa or binary")
    language_model_weight: NonNegativeFloat = 0.5
    word_bonus: Annotated[float, Field(ge=-1e3, le=1e3)] = 1.0

    @checked(mode="after")
    def _language_model_is_used(self):
        if self.language_model is not None and self.kind == "greedy":
            raise ValueError("decoding.language_model needs decoding.kind=beam")
        return self


class CtcRecipe(FineTuningRecipe):
    """Fine-tuning of a speech recogniser with CTC."""

    task: Literal["ctc"] = "ctc"
    data: TranscribedDataSection
    decoding: DecodingSection = DecodingSection()


SyntheticTask = Literal["ks", "ic", "er", "sid", "asv", "sd"]


class ClassifiedDataSection(LabelledDataSection):
    """Speech with labels in columns. `text_column` of the sources is not used."""

    synthetic_task: SyntheticTask | None = Field(
        None, description="instead of sources and evaluation: one of the small synthetic tasks, made at the start"
    )
    synthetic_examples: Small = 120
    synthetic_held_out_examples: Small = 40
    label_columns: list[str] | None = Field(
        None,
        min_length=1,
        description="where the labels are; several are slots, each with classes of its own; None: 'label', or "
        "'segments' for diarization",
    )
    class_names: list[str] | None = Field(
        None,
        min_length=2,
        description="of a single column, those of the integers in it or the strings themselves; "
        "None: what the training data hold",
    )
    num_speakers: Speakers = Field(2, description="diarization: speakers told apart in a recording")
    trials: dict[str, PathText] = Field(
        {}, description="verification: held-out set to a file of lines '1 ID ID' or '0 ID ID'; without, all pairs"
    )

    @property
    def synthetic(self) -> str | None:
        return None if self.synthetic_task is None else "synthetic_task"


class ClassificationRecipe(FineTuningRecipe):
    """Fine-tuning of a classifier of utterances, a speaker verifier, or a diariser."""

    task: Literal["classification", "verification", "diarization"]
    data: ClassifiedDataSection
    spec_augment: SpecAugmentSection | None = None

    @checked(mode="after")
    def _labels_fit(self):
        columns = self.data.label_columns or []
        if self.task != "classification" and len(columns) > 1:
            raise ValueError(f"task={self.task} reads one column of labels, data.label_columns names {len(columns)}")
        if self.data.class_names is not None and (len(columns) > 1 or self.task == "diarization"):
            raise ValueError("data.class_names are those of one column of classes; leave them to the data")
        if unknown := set(self.data.trials) - set(self.data.evaluation):
            raise ValueError(f"data.trials names {min(unknown)!r}, which is no set of data.evaluation")
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Where the labels are."""
        if self.data.label_columns is not None:
            return tuple(self.data.label_columns)
        if self.data.synthetic_task == "ic":
            return ("action", "object", "location")
        return ("segments",) if self.task == "diarization" else ("label",)


# Which recipe the key `task` names.
KINDS: dict[str, type[FineTuningRecipe]] = {
    "ctc": CtcRecipe,
    "classification": ClassificationRecipe,
    "verification": ClassificationRecipe,
    "diarization": ClassificationRecipe,
}
