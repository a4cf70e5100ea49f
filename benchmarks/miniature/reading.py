"""More CTC for a teacher that cannot read yet."""

import json
from pathlib import Path

from transformers import HubertForCTC, Wav2Vec2Processor

from lighthubert_hf.training.audio.batching import training_loader
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.demo import teacher as tiny


def train_on(corpus: Path, folder: Path, steps: int, number: int) -> dict[str, float]:
    """Train the teacher in `folder` for `steps` more, at the rates of its first CTC steps; its new error rates.

    Args:
        number: of this round; what it hears depends on it.
    """
    manifest = json.loads((folder / tiny.MANIFEST).read_text(encoding="utf-8"))
    parameters = manifest["parameters"]
    model, processor = HubertForCTC.from_pretrained(folder), Wav2Vec2Processor.from_pretrained(folder)
    loader = training_loader(
        [AudioSource(str(corpus), text_column="text")],
        batch_seconds=parameters["batch_seconds"],
        crop_seconds=None,
        max_seconds=min(15.0, parameters["batch_seconds"]),
        seed=parameters["seed"] + number,
    )
    tiny._train_ctc(model.train(), processor, (batch for batch, _ in loader), steps, parameters["learning_rate"])
    error_rates = {
        split: tiny.character_error_rate(model, processor, AudioSource(str(corpus), split, text_column="text"))
        for split in tiny.TEST_SPLITS
    }
    tiny._save(model, processor, folder, manifest | {"cer": error_rates})
    return error_rates
