"""Discrete units of the demo's subnets beside those of their teacher."""

from pathlib import Path
from typing import Any

from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.features.opening import open_encoder
from lighthubert_hf.training.units.agreement import compare_units
from lighthubert_hf.training.units.fitting import fit_codebooks
from lighthubert_hf.training.units.mapping import map_codebook

from .settings import DemoSettings


def unit_agreement(
    teacher: str, models: dict[str, Path], train: dict[str, Any], held_out: dict[str, Any], settings: DemoSettings
) -> dict[str, dict[str, Any]]:
    """How well each model's units agree with the teacher's on held-out speech, see `UnitAgreement`.

    The teacher's codebook is of its last layer, and mapped onto the last layer of each model.

    Args:
        train, held_out: Speech as recipes write a source: to learn the units from, and to compare them on.
    """
    heard, unheard = AudioSource(**train), AudioSource(**held_out)
    upstream = open_encoder(teacher)
    steps, clusters = settings.unit_steps, settings.units
    (codebook,) = fit_codebooks(
        upstream, heard, upstream.num_states - 1, clusters, steps=steps, patience=0, seed=settings.seed, save=False
    ).codebooks
    agreements = {}
    for name, model in models.items():
        student = open_encoder(model)
        mapped = map_codebook(
            upstream,
            student,
            heard,
            student.num_states - 1,
            codebook=codebook,
            max_hours=settings.unit_hours,
            save=False,
        ).codebook
        compared = compare_units(student, upstream, unheard, codebook=mapped, reference_codebook=codebook)
        agreements[name] = compared.to_dict()
    return agreements
