"""A subnet as a plain HuBERT of transformers, for readers that know nothing of this package."""

from pathlib import Path

import torch
from transformers import AutoModel, Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertModel
from lighthubert_hf.hub.derived import same_function_facts
from lighthubert_hf.hub.folder import complete_folder, load_facts
from lighthubert_hf.hub.output import written_beside

from .checkpoints.errors import ConversionError, listed
from .checkpoints.reading import read_json
from .checkpoints.writing import check_free
from .converter import ConversionReport
from .verification import Outputs, largest_difference, probe_waveform


def save_plain_hubert(model_folder: str | Path, output: str | Path, *, verify: bool = True) -> ConversionReport:
    """Write the static encoder in `model_folder` as a folder that `HubertModel.from_pretrained` loads.

    Its feature extractor goes with it; that is what s3prl's `hf_hubert_custom` reads.

    Args:
        model_folder: a LightHuBERT that was extracted from a supernet, and its feature extractor. A head is left out.
        output: the folder to write; must not exist yet (an empty one may).
        verify: compare both models' outputs on audio.

    Raises:
        FileNotFoundError: if `model_folder` is incomplete.
        ValueError: if no plain HuBERT can compute the same, or `output` exists.
    """
    folder, output = Path(model_folder), Path(output)
    check_free(output)
    data = read_json(folder / "config.json")
    if data.get("model_type") != "lighthubert":
        raise ConversionError(f"{folder} holds a {data.get('model_type')!r} model, not a LightHuBERT")
    read_json(folder / "preprocessor_config.json")
    model, info = LightHubertModel.from_pretrained(folder, output_loading_info=True)
    if missing := info["missing_keys"]:
        raise ConversionError(f"{folder} lacks weights: {listed(map(str, missing))}")
    plain = model.to_hubert()
    with written_beside(output, source=folder, by="plain hubert") as new:
        plain.save_pretrained(new)
        Wav2Vec2FeatureExtractor.from_pretrained(folder).save_pretrained(new)
        complete_folder(new, same_function_facts(load_facts(folder)))
        difference = None
        if verify:
            wave = probe_waveform().double()
            written = _outputs(AutoModel.from_pretrained(new), wave)
            difference = largest_difference(written, _outputs(model, wave), "the plain HuBERT")
    return ConversionReport(
        source=str(model_folder),
        output=str(output),
        kind="LightHuBERT subnet, as a plain HuBERT",
        num_parameters=plain.num_parameters(),
        dropped=tuple(sorted(map(str, info["unexpected_keys"]))),
        verified=("the subnet",) if verify else (),
        max_difference=difference,
    )


@torch.inference_mode()
def _outputs(model, wave: torch.Tensor) -> Outputs:
    return Outputs((), model.double().eval()(wave).last_hidden_state[0])
