"""The task heads and what they need to compute a loss on `conftest.waveforms`."""

import torch

from lighthubert_hf import (
    LightHubertForAudioFrameClassification,
    LightHubertForCTC,
    LightHubertForPreTraining,
    LightHubertForSequenceClassification,
    LightHubertForXVector,
)

HEADS = (
    LightHubertForPreTraining,
    LightHubertForCTC,
    LightHubertForSequenceClassification,
    LightHubertForXVector,
    LightHubertForAudioFrameClassification,
)
NUM_LABELS, FRAMES = 5, 14


def make_labels(cls, frames: int = FRAMES, batch: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if cls is LightHubertForPreTraining:
        return {"targets": torch.randn(batch, frames, 20, generator=generator)}
    if cls is LightHubertForCTC:
        return {"labels": torch.randint(1, 12, (batch, 3), generator=generator)}
    shape = (batch, frames) if cls is LightHubertForAudioFrameClassification else (batch,)
    return {"labels": torch.randint(0, NUM_LABELS, shape, generator=generator)}


def prediction(out) -> torch.Tensor:
    return out.predictions if "predictions" in out else out.logits
