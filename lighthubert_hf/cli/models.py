"""Commands that turn one model into another, or measure it."""

from pathlib import Path
from typing import Annotated

import typer

from .app import Json, Replace, answer, app


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A .pt file, a model folder, or OWNER/NAME[:FILE] on the Hub.")],
    output: Annotated[Path, typer.Argument(help="Supernet folder to write; with --to-original a .pt file.")],
    search_space: Annotated[
        Path | None, typer.Option(help="JSON file of a SearchSpace, or small, base, small_elastic, base_elastic.")
    ] = None,
    to_original: Annotated[bool, typer.Option(help="From a supernet to the original's checkpoint.")] = False,
    importance_sorting: Annotated[bool, typer.Option(help="Most important heads and FFN units first.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare the outputs of both sides on audio.")] = True,
    revision: Annotated[str | None, typer.Option(help="Revision of SOURCE on the Hub.")] = None,
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """An original LightHuBERT, HuBERT or wav2vec 2.0 checkpoint to a supernet folder, or back."""
    from lighthubert_hf.conversion import convert

    report = convert(
        source,
        output,
        search_space=search_space,
        to_original=to_original,
        importance_sorting=importance_sorting,
        verify=verify,
        revision=revision,
        overwrite=overwrite,
    )
    answer(report.to_dict(), as_json, str(report))


@app.command()
def extract(
    supernet: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder for the static model.")],
    subnet: Annotated[
        str, typer.Option(help="default, smallest, largest, or a Subnet as JSON or in a JSON file.")
    ] = "default",
    plain_hubert: Annotated[bool, typer.Option(help="Save a HuBERT of transformers; of a static model, too.")] = False,
    revision: Annotated[str | None, typer.Option(help="Revision of SUPERNET on the Hub.")] = None,
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """Cut a subnet out of a supernet and save it as a model of its own."""
    from lighthubert_hf.hub.publishing import extract_to_folder
    from lighthubert_hf.loading import is_static

    if plain_hubert and is_static(supernet, revision):
        from lighthubert_hf.conversion import save_plain_hubert

        if subnet != "default":
            raise ValueError(f"{supernet} is static and has no subnet to choose; leave out --subnet")
        report = save_plain_hubert(supernet, output, revision=revision, overwrite=overwrite)
        return answer(report.to_dict(), as_json, str(report))
    options = {"subnet": subnet, "plain_hubert": plain_hubert, "revision": revision, "overwrite": overwrite}
    folder = str(extract_to_folder(supernet, output, **options))
    return answer({"model": folder}, as_json, folder)


@app.command("export-onnx")
def export_onnx(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a static model.")],
    output: Annotated[Path, typer.Argument(help="File to write.")],
    int8: Annotated[bool, typer.Option(help="8-bit weights; prints what that costs and gains here.")] = False,
    units: Annotated[bool, typer.Option("--units", help="Discrete units as output, of a codebook of MODEL.")] = False,
    layer: Annotated[int | None, typer.Option(help="Which codebook, if there are several.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Which codebook, if there are several of a layer.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of MODEL on the Hub.")] = None,
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """A static model as an ONNX file for any batch size and length, compared with PyTorch."""
    from lighthubert_hf.conversion import export_onnx
    from lighthubert_hf.conversion.onnx_units import export_units_onnx

    if not units and (layer, clusters) != (None, None):
        raise ValueError("--layer and --clusters choose a codebook; add --units")
    if units:
        options = {"layer": layer, "clusters": clusters, "int8": int8, "revision": revision, "overwrite": overwrite}
        made = export_units_onnx(model, output, **options)
        answer(made.to_dict(), as_json, str(made))
        return
    report = export_onnx(model, output, int8=int8, revision=revision, overwrite=overwrite)
    answer(report.to_dict(), as_json, str(report))


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a LightHuBERT, HuBERT or wav2vec 2.0.")],
    seconds: Annotated[list[float] | None, typer.Option(help="Audio length; repeat for several.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for several.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of which the median counts.")] = 7,
    device: Annotated[str | None, typer.Option(help="To measure on: cpu (the default), cuda, …")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of MODEL on the Hub.")] = None,
    update_card: Annotated[bool, typer.Option(help="Put the time of the longest audio on the card of MODEL.")] = False,
    as_json: Json = False,
) -> None:
    """Parameters, MACs, and time measured on this machine, part by part."""
    from lighthubert_hf.costs.profiling import profile
    from lighthubert_hf.hub.publishing import check_latency_card, record_latency
    from lighthubert_hf.loading import load_encoder, on_device

    encoder = on_device(load_encoder(model, revision), device)
    if update_card:
        check_latency_card(model, of_subnet=getattr(encoder.config, "search_space", None) is not None)
    result = profile(encoder, seconds or (1.0, 10.0), batch or (1,), repeats=repeats, progress=not as_json)
    if update_card:
        record_latency(model, result)
    answer(result.to_dict(), as_json, result.table())
