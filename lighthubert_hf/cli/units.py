"""Commands over whole data sets: features, and discrete units."""

from pathlib import Path
from typing import Annotated

import typer

from lighthubert_hf.extras import require

from .app import Commands, Json, Overwrite, answer, app
from .audio import AllowPath, AudioColumn, Channel, ConfigName, Split, TextColumn, reading

units_app = Commands(
    help="Discrete units: k-means clusters of one layer's features, 50 a second.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(units_app, name="units")

Model = Annotated[str, typer.Argument(help="Folder or Hub id of a LightHuBERT, HuBERT, wav2vec 2.0 or WavLM.")]
Data = Annotated[str, typer.Argument(help="Folder, file, glob or Hub id of speech; a manifest of recordings.")]
Layers = Annotated[str, typer.Option("--layer", help="N, or several: 6,9. 0 is the input of the first layer.")]
Layer = Annotated[int | None, typer.Option("--layer", help="Which codebook, if there are several.")]
Clusters = Annotated[int | None, typer.Option(help="Which codebook, if there are several of a layer.")]
CodebookFile = Annotated[
    Path | None, typer.Option("--codebook", help="A file of codebooks; by default those beside the model.")
]
Output = Annotated[Path | None, typer.Option(help="File (.safetensors) or folder; by default the folder MODEL.")]
Subnet = Annotated[str | None, typer.Option(help="Of a supernet: default, smallest, largest, a JSON file.")]
Revision = Annotated[str | None, typer.Option(help="Revision of MODEL on the Hub.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; by default a GPU if there is one.")]
BrokenShare = Annotated[float, typer.Option(help="A larger share of unreadable files is an error.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Leave longer recordings out, counted.")]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--layer must be a number, or several with commas between (6,9), got {text!r}") from None


@app.command()
def features(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    layer: Layers,
    format: Annotated[str, typer.Option(help="safetensors or parquet.")] = "safetensors",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    shard_megabytes: Annotated[float, typer.Option(help="Size of a shard, about.")] = 256.0,
    max_seconds: MaxSeconds = None,
    max_broken_share: BrokenShare = 0.05,
    split: Split = None,
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    text_column: TextColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
    subnet: Subnet = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Features of a whole data set in files, a row for each recording. Again, it goes on after the last shard."""
    require("train", what="features of a data set")
    from lighthubert_hf.training.features.saving import save_features

    written = save_features(
        model,
        data,
        output,
        _numbers(layer),
        format=format,
        dtype=dtype,
        shard_megabytes=shard_megabytes,
        max_seconds=max_seconds,
        max_broken_share=max_broken_share,
        source=reading(split, config_name, audio_column, text_column, channel, allow_path),
        revision=revision,
        subnet=subnet,
        device=device,
        overwrite=overwrite,
    )
    answer(written.to_dict(), as_json, str(written))


@units_app.command()
def fit(
    model: Model,
    data: Data,
    layer: Layers,
    clusters: Annotated[int, typer.Option(help="Units of each codebook, usually 100 to 2,000.")] = 500,
    output: Output = None,
    steps: Annotated[int, typer.Option(help="Mini-batches at most, of 200 s of speech or more.")] = 200,
    patience: Annotated[int, typer.Option(help="Stop after so many steps without gain; 0 never does.")] = 20,
    seed: int = 0,
    max_broken_share: BrokenShare = 0.05,
    split: Split = None,
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
    subnet: Subnet = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn codebooks of one or more layers at one pass, and put them beside the model. Again, it goes on."""
    require("train", what="fitting units")
    from lighthubert_hf.training.units.fitting import fit_codebooks

    result = fit_codebooks(
        model,
        data,
        _numbers(layer),
        clusters,
        output=output,
        steps=steps,
        patience=patience,
        seed=seed,
        max_broken_share=max_broken_share,
        source=reading(split, config_name, audio_column, None, channel, allow_path),
        revision=revision,
        subnet=subnet,
        device=device,
        overwrite=overwrite,
    )
    answer(result.to_dict(), as_json, str(result))


@units_app.command()
def apply(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    codebook: CodebookFile = None,
    layer: Layer = None,
    clusters: Clusters = None,
    format: Annotated[str, typer.Option(help="parquet or jsonl.")] = "parquet",
    repeats: Annotated[bool, typer.Option("--repeats", help="A unit for every frame, instead of durations.")] = False,
    max_seconds: MaxSeconds = None,
    max_broken_share: BrokenShare = 0.05,
    split: Split = None,
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    text_column: TextColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
    subnet: Subnet = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Units of a whole data set in files that `datasets` reads. Again, it goes on after the last shard."""
    require("train", what="units of a data set")
    from lighthubert_hf.training.units.applying import apply_units

    written = apply_units(
        model,
        data,
        output,
        codebook=codebook,
        layer=layer,
        clusters=clusters,
        format=format,
        repeats=repeats,
        max_seconds=max_seconds,
        max_broken_share=max_broken_share,
        source=reading(split, config_name, audio_column, text_column, channel, allow_path),
        revision=revision,
        subnet=subnet,
        device=device,
        overwrite=overwrite,
    )
    answer(written.to_dict(), as_json, str(written))


@units_app.command("map")
def map_units(
    teacher: Annotated[str, typer.Argument(help="Folder or Hub id of the model whose units they are.")],
    model: Model,
    data: Data,
    layer: Annotated[int, typer.Option(help="Of MODEL, whose features are to say the units.")],
    codebook: Annotated[Path | None, typer.Option(help="TEACHER's; by default those beside it.")] = None,
    teacher_layer: Annotated[int | None, typer.Option(help="Which of TEACHER's codebooks.")] = None,
    clusters: Clusters = None,
    output: Output = None,
    max_hours: Annotated[float, typer.Option(help="Of speech, taken at random.")] = 10.0,
    max_broken_share: BrokenShare = 0.05,
    split: Split = None,
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
    subnet: Subnet = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A teacher's units said by another model: unit k is the mean of its features where the teacher says k."""
    require("train", what="mapping units")
    from lighthubert_hf.training.units.mapping import map_codebook

    result = map_codebook(
        teacher,
        model,
        data,
        layer,
        codebook=codebook,
        teacher_layer=teacher_layer,
        clusters=clusters,
        output=output,
        max_hours=max_hours,
        max_broken_share=max_broken_share,
        source=reading(split, config_name, audio_column, None, channel, allow_path),
        revision=revision,
        subnet=subnet,
        device=device,
        overwrite=overwrite,
    )
    answer(result.to_dict(), as_json, str(result))


@units_app.command("evaluate")
def evaluate_units(
    model: Model,
    reference: Annotated[str, typer.Argument(help="Folder or Hub id of the model to compare with, the teacher.")],
    data: Data,
    codebook: CodebookFile = None,
    reference_codebook: Annotated[Path | None, typer.Option(help="By default those beside REFERENCE.")] = None,
    layer: Layer = None,
    reference_layer: Annotated[int | None, typer.Option(help="Which of REFERENCE's codebooks.")] = None,
    clusters: Clusters = None,
    reference_clusters: Annotated[int | None, typer.Option(help="Which of REFERENCE's, by its size.")] = None,
    alignments: Annotated[
        str | None, typer.Option(help="Column with phones, {start, end, phone} in seconds each.")
    ] = None,
    max_hours: Annotated[float, typer.Option(help="Of speech to compare on.")] = 10.0,
    max_broken_share: BrokenShare = 0.05,
    split: Annotated[str, typer.Option(help="Of the data set, held out from fitting.")] = "test",
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
    subnet: Subnet = None,
    revision: Revision = None,
    device: Device = None,
    update_card: Annotated[bool, typer.Option(help="Put the numbers on the card of the folder MODEL.")] = False,
    as_json: Json = False,
) -> None:
    """How well a model's units agree with another's, and with phones, on speech that neither was fitted on."""
    require("train", what="comparing units")
    from lighthubert_hf.training.units.agreement import compare_units
    from lighthubert_hf.training.units.recording import check_recordable, record_agreement

    if update_card:
        check_recordable(model, codebook)
    found = compare_units(
        model,
        reference,
        data,
        codebook=codebook,
        reference_codebook=reference_codebook,
        layer=layer,
        reference_layer=reference_layer,
        clusters=clusters,
        reference_clusters=reference_clusters,
        alignments=alignments,
        max_hours=max_hours,
        max_broken_share=max_broken_share,
        source=reading(split, config_name, audio_column, None, channel, allow_path),
        revision=revision,
        subnet=subnet,
        device=device,
    )
    if update_card:
        record_agreement(model, found, layer=layer, clusters=clusters)
    answer(found.to_dict(), as_json, str(found))


@units_app.command("import")
def import_codebook(
    file: Annotated[Path, typer.Argument(help="Centroids of another program: .npy, .npz or .safetensors.")],
    model: Annotated[str, typer.Argument(help="The model whose features were clustered: a folder or Hub id.")],
    layer: Annotated[int, typer.Option(help="Whose features they are; files do not say.")],
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Centroids of fairseq, textless or any program, for a model. Pickles are refused, with the way out."""
    require("train", what="reading codebooks")
    from lighthubert_hf.training.units.recording import import_codebook

    codebook, path = import_codebook(file, model, layer, output=output, overwrite=overwrite)
    text = f"layer {layer}: {codebook.clusters} units, {codebook.width} wide\n{path}"
    answer({"output": str(path), "codebook": codebook.to_dict()}, as_json, text)
