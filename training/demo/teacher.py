"""A small HuBERT from nothing, on two cores in minutes: the teacher of the demo, of tests and of tiny recipes.

CTC from scratch sits on its plateau for minutes. What works is what HuBERT does: first learn to name clusters of
spectra, frame by frame, then CTC on the transcripts.
"""

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Wav2Vec2Processor

from lighthubert_hf import LightHubertConfig, LightHubertForCTC
from lighthubert_hf.files import read_object, replacing_folder
from lighthubert_hf.locks import locked
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.audio.batching import Batch, training_loader, validation_loader
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.finetuning.decoding import greedy_ids, transcriptions
from lighthubert_hf.training.finetuning.processors import build_processor, characters
from lighthubert_hf.training.runs.memory import trim_every_so_often

MANIFEST = "tiny_teacher.json"
NUM_CLUSTERS = 100
TEST_SPLITS = ("test_sentences", "test_voice")

# The spectra stand where the frames of the model do: its receptive field is 400 samples, its stride 320.
_WINDOW, _HOP, _NUM_MELS = 400, 320, 40
_CLUSTERING_SECONDS = 600
_MAX_SECONDS = 15.0
# Of the steps of CTC those that train the head alone, at this rate, and of the others those at the full rate.
_HEAD_SHARE, _HEAD_RATE, _FULL_SHARE = 0.12, 1e-2, 0.2


def train_tiny_teacher(
    corpus_folder: str | os.PathLike,
    output_folder: str | os.PathLike,
    *,
    pretrain_steps: int = 550,
    ctc_steps: int = 1100,
    batch_seconds: float = 24.0,
    window_size: int = 256,
    learning_rate: float = 1e-3,
    pretrain_rate: float | None = None,
    seed: int = 0,
    config: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train a HuBERT, by default of 0.9M parameters, on a synthetic corpus and save it as a model folder.

    The folder is an ordinary `HubertForCTC` with its processor (`AutoModel` loads the encoder from it,
    `pipeline("automatic-speech-recognition")` the whole), and `tiny_teacher.json` with the parameters and results.

    Args:
        corpus_folder: What `synthesise_corpus` wrote.
        output_folder: Where to save. A teacher that was trained with the same parameters is reused; anything else in
            the way is an error. It is written beside and renamed at the end.
        pretrain_steps: Steps of frame classification against k-means clusters of log-mel spectra.
        ctc_steps: Steps of CTC.
        batch_seconds: Audio per step, padding included.
        window_size: Utterances among which lengths are matched.
        learning_rate: Of AdamW, warmed up over 5 % of each part; in CTC it falls to zero after a fifth of the steps.
        pretrain_rate: Of the frame classification, which bears a higher one; `None`: the same.
        seed: Seed of weights, clusters and order.
        config: `LightHubertConfig` fields of another model than the default one, such as `{"num_hidden_layers": 6}`.

    Returns:
        Character error rates of greedy decoding, 0 to 1, by split: new sentences, and a voice not heard in training.

    Raises:
        ValueError: Parameters that make no sense, or a folder in the way.
        FileNotFoundError: There is no corpus.
        ImportError: scikit-learn is not installed.
    """
    rates = (learning_rate, learning_rate if pretrain_rate is None else pretrain_rate)
    if min(pretrain_steps, ctc_steps) < 1 or min(rates) <= 0:
        raise ValueError(
            "pretrain_steps and ctc_steps must be at least 1 and both rates above 0, "
            f"got {pretrain_steps}, {ctc_steps} and {rates}"
        )
    output = Path(output_folder)
    parameters = {
        "pretrain_steps": pretrain_steps,
        "ctc_steps": ctc_steps,
        "batch_seconds": float(batch_seconds),
        "learning_rate": learning_rate,
        "seed": seed,
    }
    # Only what is said, so that teachers of before there was more to say are found again.
    said = {"window_size": window_size != 256 and window_size, "pretrain_rate": pretrain_rate, "config": config}
    parameters |= {name: value for name, value in said.items() if value}
    if (found := _existing_result(output, parameters)) is not None:
        return found
    corpus = str(corpus_folder)
    loader = training_loader(
        [AudioSource(corpus, text_column="text")],
        batch_seconds=batch_seconds,
        window_size=window_size,
        crop_seconds=None,
        max_seconds=min(_MAX_SECONDS, batch_seconds),
        seed=seed,
    )
    processor = build_processor(characters(_transcripts(corpus)))
    model = _build_model(len(processor.tokenizer), seed, config)
    batches = (batch for batch, _ in loader)
    trained_on = pretrain_steps * batch_seconds  # clusters of more than that would be of no use
    clusters = SpectralClusters.fit((batch for batch, _ in loader), seed, min(_CLUSTERING_SECONDS, trained_on))
    _pretrain(model, clusters, batches, pretrain_steps, rates[1], seed)
    _train_ctc(model, processor, batches, ctc_steps, learning_rate)
    error_rates = {
        split: character_error_rate(model, processor, AudioSource(corpus, split, text_column="text"))
        for split in TEST_SPLITS
    }
    _save(model, processor, output, {"parameters": parameters, "cer": error_rates})
    return error_rates


def _existing_result(output: Path, parameters: dict[str, Any]) -> dict[str, float] | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    path = output / MANIFEST
    if not path.is_file():
        raise ValueError(f"{output} exists and is not a tiny teacher (no {MANIFEST}); choose another folder")
    manifest = read_object(path, "delete the folder to train it again")
    if not isinstance(manifest.get("cer"), dict):
        raise ValueError(f"{path} is damaged: it has no error rates; delete the folder to train it again")
    if manifest.get("parameters") != parameters:
        raise ValueError(
            f"{output} holds a teacher trained with {manifest.get('parameters')}, asked for {parameters}; "
            "delete it or choose another folder"
        )
    return manifest["cer"]


def _transcripts(corpus: str) -> Iterator[str]:
    """All training transcripts."""
    from datasets import load_dataset

    rows = load_dataset(corpus, split="train", streaming=True).select_columns(["text"])
    return (row["text"] for row in rows)


def _build_model(vocab_size: int, seed: int, config: dict[str, Any] | None = None) -> LightHubertForCTC:
    """A HuBERT in this package's own form, in which a step takes about half the time; `_save` makes it a plain one."""
    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "conv_dim": [64] * 7,
        "feat_extract_norm": "layer",
        "num_conv_pos_embeddings": 32,
        "num_conv_pos_embedding_groups": 8,
    }
    shape |= config or {}
    shape["head_dim"] = shape["hidden_size"] // shape["num_attention_heads"]
    config = LightHubertConfig(
        **shape,
        vocab_size=vocab_size,
        # So small and so briefly trained, it underfits: every regulariser costs.
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LightHubertForCTC(config)


class SpectralClusters:
    """k-means clusters of log-mel spectra: the frame targets of the first iteration of HuBERT (there, of MFCCs).

    Args:
        mean, scale: Per mel band, of shape `(num_mels,)`.
        centres: Of standardised spectra, of shape `(num_clusters, num_mels)`.
    """

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor, centres: torch.Tensor):
        self.mean, self.scale, self.centres = mean, scale, centres

    @classmethod
    def fit(cls, batches: Iterator[Batch], seed: int, max_seconds: float = _CLUSTERING_SECONDS) -> "SpectralClusters":
        """Cluster every third frame of the first `max_seconds` of audio, by default ten minutes."""
        from sklearn.cluster import MiniBatchKMeans

        frames, seconds = [], 0.0
        for batch in batches:
            frames.append(log_mel(batch["input_values"])[valid_frames(batch)][::3])
            seconds += batch["attention_mask"].sum().item() / SAMPLING_RATE
            if seconds >= max_seconds:
                break
        spectra = torch.cat(frames)
        mean, scale = spectra.mean(0), spectra.std(0)
        clustering = MiniBatchKMeans(
            min(NUM_CLUSTERS, len(spectra)), random_state=seed, n_init=1, batch_size=4096
        ).fit(((spectra - mean) / scale).numpy())
        return cls(mean, scale, torch.from_numpy(clustering.cluster_centers_.astype(np.float32)))

    def targets(self, batch: Batch) -> torch.Tensor:
        """Cluster of every frame, `(batch_size, num_frames)`, and -100 where there is padding."""
        spectra = (log_mel(batch["input_values"]) - self.mean) / self.scale
        nearest = (self.centres.pow(2).sum(1) - 2 * spectra @ self.centres.T).argmin(-1)
        return nearest.masked_fill(~valid_frames(batch), -100)


def log_mel(input_values: torch.Tensor) -> torch.Tensor:
    """Log-mel spectra, `(batch_size, num_samples)` to `(batch_size, num_frames, 40)`, one for each frame of HuBERT."""
    frames = input_values.unfold(-1, _WINDOW, _HOP) * torch.hann_window(_WINDOW)
    return torch.log(torch.fft.rfft(frames).abs().pow(2) @ _mel_filters() + 1e-3)


def _mel_filters() -> torch.Tensor:
    """Triangular filters from 60 to 7600 Hz on O'Shaughnessy's mel scale, `(num_frequencies, 40)`."""
    mel_of = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(mel_of(60), mel_of(7600), _NUM_MELS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / SAMPLING_RATE)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre))
    return torch.from_numpy(np.maximum(filters, 0).astype(np.float32))


def valid_frames(batch: Batch) -> torch.Tensor:
    """Which frames lie in audio altogether, `(batch_size, num_frames)`, boolean."""
    mask = batch["attention_mask"]
    lengths = (mask.sum(1) - _WINDOW) // _HOP + 1
    return torch.arange((mask.shape[1] - _WINDOW) // _HOP + 1)[None] < lengths[:, None]


def _pretrain(
    model: LightHubertForCTC,
    clusters: SpectralClusters,
    batches: Iterator[Batch],
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(model.config.hidden_size, len(clusters.centres))

    def loss_of(batch: Batch) -> torch.Tensor:
        hidden = model.lighthubert(batch["input_values"], attention_mask=batch["attention_mask"]).last_hidden_state
        return nn.functional.cross_entropy(head(hidden).flatten(0, 1), clusters.targets(batch).flatten())

    parameters = [*model.lighthubert.parameters(), *head.parameters()]
    _fit(parameters, loss_of, batches, steps, learning_rate, decay_from=1.0, description="teacher, frame targets")


def _train_ctc(
    model: LightHubertForCTC, processor: Wav2Vec2Processor, batches: Iterator[Batch], steps: int, learning_rate: float
) -> None:
    """The head alone first: it finds the letters in what the encoder has learnt. With all weights trained from the
    first step on, at a rate like this, CTC stays on its plateau of blanks."""

    def loss_of(batch: Batch) -> torch.Tensor:
        labels = processor.tokenizer(batch["texts"], padding=True, return_tensors="pt")
        labels = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        return model(batch["input_values"], attention_mask=batch["attention_mask"], labels=labels).loss

    head_steps = round(_HEAD_SHARE * steps)
    if head_steps:
        model.freeze_base_model()
        head = list(model.lm_head.parameters())
        _fit(head, loss_of, batches, head_steps, _HEAD_RATE, decay_from=1.0, description="teacher, CTC head")
        model.requires_grad_(True)
    everything, rest = list(model.parameters()), steps - head_steps
    name = "teacher, CTC"
    _fit(everything, loss_of, batches, rest, learning_rate, decay_from=_FULL_SHARE, description=name)


def _fit(
    parameters: list[nn.Parameter],
    loss_of: Callable[[Batch], torch.Tensor],
    batches: Iterator[Batch],
    steps: int,
    learning_rate: float,
    *,
    decay_from: float,
    description: str,
) -> None:
    """AdamW with a warm-up over 5 % of the steps and a linear decay to zero from the share `decay_from` of them."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)

    def factor(step: int) -> float:
        done = (step + 1) / steps
        return min(1.0, done / 0.05, (1 - step / steps) / (1 - decay_from) if decay_from < 1 else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with progress_bar(islice(batches, steps), description, total=steps, unit="steps") as progress:
        for step, batch in enumerate(progress):
            loss = loss_of(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            trim_every_so_often(step)


@torch.inference_mode()
def character_error_rate(model: LightHubertForCTC, processor: Wav2Vec2Processor, source: AudioSource) -> float:
    """Character error rate of greedy decoding over a whole split, 0 to 1 (more with many insertions)."""
    from lighthubert_hf.metrics import CharacterErrorRate

    was_training, metric = model.training, CharacterErrorRate()
    model.eval()
    for batch, _ in validation_loader([source], batch_seconds=60, crop_seconds=None, max_seconds=60):
        logits = model(batch["input_values"], attention_mask=batch["attention_mask"]).logits
        texts = transcriptions(greedy_ids(model, logits, batch["attention_mask"]), processor)
        metric.add_batch(predictions=texts, references=batch["texts"])
    model.train(was_training)
    return metric.compute()["cer"]


def _save(model: LightHubertForCTC, processor: Wav2Vec2Processor, output: Path, manifest: dict[str, Any]) -> None:
    with locked(output), replacing_folder(output) as new:
        model.to_hubert().save_pretrained(new)
        processor.save_pretrained(new)
        # Besides processor_config.json, for readers that know only this: preprocessor_config.json.
        processor.feature_extractor.save_pretrained(new)
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
