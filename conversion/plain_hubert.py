"""A subnet as a plain HuBERT of transformers, for readers that know nothing of this package."""

from pathlib import Path

import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lighthubert_hf import LightHubertForCTC, LightHubertForSequenceClassification, LightHubertModel
from lighthubert_hf.hub.derived import same_function_facts
from lighthubert_hf.hub.folder import TOKENIZER, complete_folder, load_facts
from lighthubert_hf.hub.output import written_beside
from lighthubert_hf.loading import load, load_feature_extractor, load_speech_processor

from .checkpoints.errors import ConversionError
from .checkpoints.reading import read_json
from .checkpoints.writing import check_free
from .converter import ConversionReport
from .sources import resolve
from .verification import Outputs, largest_difference, probe_waveform

# Heads that transformers' HuBERT has, too. Others are left out.
_HEADS = {cls.__name__: cls for cls in (LightHubertForCTC, LightHubertForSequenceClassification)}


def save_plain_hubert(
    model_folder: str | Path,
    output: str | Path,
    *,
    verify: bool = True,
    revision: str | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Write the static model `model_folder` as a folder that transformers' HuBERT loads without this package.

    An encoder becomes a `HubertModel`, what recognises a `HubertForCTC`, what classifies a
    `HubertForSequenceClassification`. Feature extractor and tokenizer go with it; that is what s3prl's
    `hf_hubert_custom` and pipelines read.

    Args:
        model_folder: folder or Hub id of a LightHuBERT that was extracted from a supernet, fine-tuned or not, and its
            feature extractor. A head that transformers' HuBERT has not is left out.
        output: the folder to write; must not exist yet (an empty one may), unless `overwrite`.
        verify: compare both models' outputs on audio.
        revision: branch, tag or commit, of a model on the Hub.
        overwrite: replace another model in `output`. One made from the same source is replaced in any case then.

    Raises:
        FileNotFoundError: if `model_folder` is incomplete.
        ValueError: if no plain HuBERT can compute the same, or `output` exists.
    """
    folder, output = resolve(model_folder, revision), Path(output)
    if not overwrite:
        check_free(output)
    data = read_json(folder / "config.json")
    if data.get("model_type") != "lighthubert":
        raise ConversionError(f"{model_folder} holds a {data.get('model_type')!r} model, not a LightHuBERT")
    if data.get("search_space") is not None:
        raise ConversionError(
            f"{model_folder} holds a supernet; `lighthubert extract {model_folder} OUTPUT --plain-hubert` takes a "
            "subnet out of it"
        )
    read_json(folder / "preprocessor_config.json")
    cls = _HEADS.get((data.get("architectures") or [""])[0], LightHubertModel)
    loaded = load(cls, folder)
    model, plain = loaded.model, loaded.model.to_hubert()
    with written_beside(output, source=folder, by="plain hubert", overwrite=overwrite) as new:
        plain.save_pretrained(new)
        _processor(folder).save_pretrained(new)
        complete_folder(new, same_function_facts(load_facts(folder)))
        difference = None
        if verify:
            wave = probe_waveform().double()
            written = _outputs(load(type(plain), new).model, wave)
            difference = largest_difference(written, _outputs(model, wave), "the plain HuBERT")
    return ConversionReport(
        source=str(model_folder),
        output=str(output),
        kind=f"{cls.__name__}, as a plain {type(plain).__name__}",
        num_parameters=plain.num_parameters(),
        dropped=tuple(sorted(loaded.left_out)),
        verified=("the subnet",) if verify else (),
        max_difference=difference,
    )


def _processor(folder: Path) -> Wav2Vec2FeatureExtractor | Wav2Vec2Processor:
    if (folder / TOKENIZER).is_file():
        return load_speech_processor(folder)
    return load_feature_extractor(folder)


@torch.inference_mode()
def _outputs(model, wave: torch.Tensor) -> Outputs:
    outputs = model.double().eval()(wave)
    return Outputs((), getattr(outputs, "logits" if "logits" in outputs else "last_hidden_state")[0])
