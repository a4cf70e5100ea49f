"""The frozen teacher: any HuBERT, wav2vec2, WavLM or data2vec-audio model, and what is read from inside it."""

import math

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel, PreTrainedModel

from lighthubert_hf import LightHubertModel
from lighthubert_hf.loading import load_encoder
from lighthubert_hf.padding import is_padding_invariant
from lighthubert_hf.training.distillation.objectives.base import TeacherOutput, TeacherRequest

from .own_form import own_form
from .recipe import TeacherSection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_teacher(settings: TeacherSection, seed: int = 0) -> PreTrainedModel:
    """The encoder that a recipe's section `teacher` names, in its dtype; task heads are left out.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: `random_config` makes no HuBERT, or weights are not what they should be (see `loading`).
    """
    if settings.random_config is not None:
        try:
            config = HubertConfig(**settings.random_config)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise ValueError(f"teacher.random_config makes no HuBERT: {' '.join(str(error).split())}") from None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return HubertModel(config).to(DTYPES[settings.dtype])
    return load_encoder(settings.path, settings.revision, dtype=DTYPES[settings.dtype])


class Teacher:
    """A frozen encoder in evaluation mode and its own dtype. Not an `nn.Module`, so that nobody trains or wraps it.

    HuBERT and wav2vec 2.0 run in our own form, which computes the same in less time (`own_form.py`).

    Args:
        model: The encoder. It is frozen, and what runs shares its weights.
        request: What to read from it.
        as_it_is: Run `model` itself, whatever it is.

    Raises:
        ValueError: The model has no layers to read from, or not the ones `request` names.
    """

    def __init__(self, model: PreTrainedModel, request: TeacherRequest, as_it_is: bool = False):
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.request = request
        self._captured: dict[int | str, torch.Tensor] = {}
        self._check()
        form = None if as_it_is else own_form(model)
        if form is not None:
            self.model = form
        self.padding_invariant = is_padding_invariant(self.model)
        if request.projected:
            self.model.feature_projection.register_forward_hook(self._capture("projected"))
        for index in request.layer_results:
            dense = self.model.encoder.layers[index].feed_forward.output_dense
            dense.register_forward_hook(self._capture(index))

    def keep_front_end(self) -> None:
        """Hand out the convolutional features from now on, for a student that has the same front end."""
        self.model.feature_extractor.register_forward_hook(self._capture("front_end"))

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.config.conv_stride)

    def to(self, device: torch.device) -> "Teacher":
        self.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
    ) -> TeacherOutput:
        """
        Args:
            input_values: `(batch, samples)`, normalised 16 kHz audio.
            attention_mask: `(batch, samples)`, 1 for samples, 0 for padding on the right; `None`: no padding.
            mask_time_indices: `(batch, frames)`, frames to hide behind the teacher's own mask embedding.

        Of a model whose features padding changes, rows of equal length run together, unpadded.
        """
        if attention_mask is None or self.padding_invariant:
            return self._run(input_values, attention_mask, mask_time_indices)
        lengths = attention_mask.sum(-1)
        pieces: list[tuple[torch.Tensor, TeacherOutput]] = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            hidden = None if mask_time_indices is None else mask_time_indices[rows]
            pieces.append((rows, self._run(input_values[rows, :length], None, hidden)))
        return _scattered(pieces, len(input_values))

    def _run(self, input_values, attention_mask, mask_time_indices) -> TeacherOutput:
        options = {}
        if mask_time_indices is not None:
            frames = int(self.model._get_feat_extract_output_lengths(input_values.shape[1]))
            missing = frames - mask_time_indices.shape[1]  # negative: F.pad cuts
            options["mask_time_indices"] = F.pad(mask_time_indices, (0, missing), value=False)
        with torch.autocast(input_values.device.type, enabled=False):
            states = self._run_model(input_values.to(self.model.dtype), attention_mask, options)
        results, self._captured = self._captured, {}
        front_end, projected = results.pop("front_end", None), results.pop("projected", None)
        if isinstance(projected, tuple):  # wav2vec 2.0 and its kin hand out what the projection was given, too
            projected = projected[0]
        if front_end is not None and not isinstance(self.model, LightHubertModel):
            front_end = front_end.transpose(1, 2)  # transformers' lies channel by channel
        return TeacherOutput(results, states, projected, front_end)

    def _run_model(self, input_values, attention_mask, options) -> dict[int, torch.Tensor]:
        """The hidden states asked for; without a layer to run, no more than the front end runs."""
        if not self.request.runs_layers:
            if isinstance(self.model, LightHubertModel):
                features = self.model.extract_features(input_values, attention_mask)
            else:
                features = self.model.feature_extractor(input_values).transpose(1, 2)
            self.model.feature_projection(features)
            return {}
        outputs = self.model(
            input_values,
            attention_mask=attention_mask,
            output_hidden_states=bool(self.request.hidden_states),
            **options,
        )
        return {index: outputs.hidden_states[index] for index in self.request.hidden_states}

    def _capture(self, key: int | str):
        def hook(_module, _inputs, output):
            self._captured[key] = output

        return hook

    def _check(self) -> None:
        kind = type(self.model).__name__
        layers = getattr(getattr(self.model, "encoder", None), "layers", None)
        if layers is None or not hasattr(self.config, "conv_stride"):
            raise ValueError(f"a {kind} cannot teach; use a HuBERT, wav2vec2, WavLM or data2vec-audio encoder")
        if self.request.layer_results and not all(
            hasattr(getattr(layer, "feed_forward", None), "output_dense") for layer in layers
        ):
            raise ValueError(
                f"the layers of a {kind} have no feed_forward.output_dense to read FFN outputs from; "
                "choose an objective on hidden states (dphubert, distilhubert, armhubert)"
            )
        wanted = [*(index + 1 for index in self.request.layer_results), *self.request.hidden_states]
        if wanted and (min(wanted) < 0 or max(wanted) > len(layers)):
            raise ValueError(
                f"the objective asks for layer {max(wanted) if max(wanted) > len(layers) else min(wanted)}, "
                f"the teacher has layers 1 to {len(layers)} (0: their input)"
            )
        if self.request.masked and not (
            hasattr(self.model, "masked_spec_embed") and getattr(self.config, "apply_spec_augment", True)
        ):
            raise ValueError(
                f"the objective masks the teacher's features, but this {kind} has no mask embedding in use "
                "(mask_time_prob is 0 or apply_spec_augment is off in its config); choose another objective"
            )


def _scattered(pieces: list[tuple[torch.Tensor, TeacherOutput]], num_rows: int) -> TeacherOutput:
    """One padded batch of outputs from batches of some rows each."""

    def join(tensors: list[torch.Tensor]) -> torch.Tensor:
        frames = max(tensor.shape[1] for tensor in tensors)
        out = tensors[0].new_zeros(num_rows, frames, tensors[0].shape[2])
        for (rows, _), tensor in zip(pieces, tensors, strict=True):
            out[rows, : tensor.shape[1]] = tensor
        return out

    first = pieces[0][1]
    return TeacherOutput(
        {index: join([piece.layer_results[index] for _, piece in pieces]) for index in first.layer_results},
        {index: join([piece.hidden_states[index] for _, piece in pieces]) for index in first.hidden_states},
        *(
            None if getattr(first, name) is None else join([getattr(piece, name) for _, piece in pieces])
            for name in ("projected", "front_end")
        ),
    )
