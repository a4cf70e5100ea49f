"""The report: tables for people, plots, and all results as JSON."""

import argparse
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import claims
from contenders import machine, markdown, publish  # in the folder above
from parts import Results, write_json
from plots import plot_all
from settings import Setting

NAMES = {
    "several": "two subnets per teacher forward",
    "sandwich": "sandwich rule",
    "in-place": "sandwich rule and in-place distillation",
    "shrinking": "progressive shrinking",
    "sorting": "importance sorting after stage 1",
    "teacher-init": "teacher initialisation, no stage 1",
    "teacher-init-in-place": "teacher initialisation, sandwich rule and in-place distillation",
}
CLAIMS = {
    "1": "The largest subnet after stage 1 is as good as the teacher",
    "2": "29 % fewer parameters cost almost nothing; at 3.5 × fewer only phonemes lose more than a point",
    "3": "Subnets cut untouched match students trained alone, at a fraction of the cost",
    "4": "Two stages beat stage 2 alone; cutting from stage 1 fails",
    "5": "The loss ranks subnets as the probes do; evolution beats random search and the default subnet",
    "6": "Additions that reach the plain recipe's loss with less work",
}


def write_report(setting: Setting, output: Path, json_file: Path | None = None, docs: Path | None = None) -> str:
    """Collect what is there, write results.json, report.md and plots, and return the text.

    Args:
        json_file: where to write the results besides.
        docs: a guide with the lines `<!-- miniature/run: begin -->` and `end`; plots go to `images/` beside it, under
            its name.
    """
    results = Results(output).collect(setting)
    results = {"setting": setting.to_dict(), "machine": machine(), **rounded(results)}
    text = report(results)
    write_json(output / "results.json", results)
    (output / "report.md").write_text(text + "\n", encoding="utf-8")
    plots = plot_all(results, output)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, results)
    if docs is not None:
        images, shown = docs.parent / "images", []
        images.mkdir(exist_ok=True)
        for path, title in plots.items():
            name = docs.stem + path.name.removeprefix("miniature")
            shutil.copy(path, images / name)
            shown.append(f"![{title}](images/{name})")
        publish("miniature/run", results, "\n\n".join([text, *shown]), argparse.Namespace(json=None, docs=docs))
    return text


def report(results: dict[str, Any]) -> str:
    """Everything as Markdown."""
    seeds = results["seeds"]
    parts = [_what_was_run(results), "### Verdicts", _verdicts(seeds)]
    parts += ["### Probes", _probes(seeds), "### Losses", _losses(seeds), "### Additions", _additions(seeds)]
    parts += ["### Every measurement", _rows(seeds)]
    return "\n\n".join(part for part in parts if part)


def _what_was_run(results: dict[str, Any]) -> str:
    shared, wall = results["shared"], results["wall_seconds"]
    if "teacher" not in shared:
        return "Nothing has been trained yet."
    speech, errors = shared["corpus"]["splits"]["train"], shared["teacher"]["cer"]
    done = sum(len(parts) for parts in results["seeds"].values())
    text = (
        f"{speech['seconds'] / 3600:.1f} h of speech in {shared['corpus']['voices']} voices. The teacher misreads "
        f"{100 * errors['test_sentences']:.1f} % of the characters of new sentences, "
        f"{100 * errors['test_voice']:.1f} % in voices it never heard. {done} parts of {len(results['seeds'])} seeds; "
        f"their processes and the shared ones took {sum(wall.values()) / 60:.0f} minutes in all."
    )
    counts = [seed["stage2"]["parameters"] for seed in results["seeds"].values() if "stage2" in seed]
    if counts:
        shares = {name: f"{100 * count / counts[0]['largest']:.0f} %" for name, count in counts[0].items()}
        listed = ", ".join(f"{name} {share}" for name, share in shares.items() if name != "largest")
        text += f" Parameters: largest subnet {counts[0]['largest'] / 1e6:.2f}M; of these, {listed}."
    return text


def _verdicts(seeds: claims.Seeds) -> str:
    rows = []
    for number, found in claims.all_claims({"seeds": seeds}).items():
        if number == "6":
            best = claims.winner(seeds)
            result = f"winner: {NAMES[best]}" if best else "no winner"
        else:
            result = claims.verdict(found)
        tally = [sum(row.verdict == kind for row in found) for kind in (claims.HOLDS, claims.FAILS, claims.UNDECIDED)]
        rows.append([f"{number}. {CLAIMS[number]}", f"**{result}**", *map(str, tally)])
    return markdown(["claim", "verdict", "rows that hold", "fail", "undecided"], rows)


def _rows(seeds: claims.Seeds) -> str:
    cells = [
        [number, row.what, row.measured, row.expected, row.verdict]
        for number, rows in claims.all_claims({"seeds": seeds}).items()
        for row in rows
    ]
    return markdown(["claim", "what", "measured", "rule", "verdict"], cells)


def _probes(seeds: claims.Seeds) -> str:
    present = [seed["probes"] for seed in seeds.values() if "probes" in seed]
    if not present:
        return ""
    cells = []
    for name in present[0]:
        scores = [[claims.points(probes[name]["scores"], task) for probes in present] for task in claims.TITLES]
        shown = [claims.with_spread(values, signed=False) for values in scores]
        cells.append([_with_percent(name), f"{present[0][name]['parameters'] / 1e6:.2f}", *shown])
    header = ["frozen model", "M parameters", *claims.TITLES.values()]
    return (
        "100 % less the error rate (phonemes, verification) or accuracy, in percent; heads on frozen features.\n\n"
        + markdown(header, cells)
    )


def _losses(seeds: claims.Seeds) -> str:
    cells = []
    for part in ("stage1", "stage2", "stage2-alone", "alone-71", "alone-29", *NAMES):
        present = [seed[part] for seed in seeds.values() if part in seed]
        if not present:
            continue
        named = [
            claims.with_spread([run["losses"][name] for run in present], signed=False, digits=3)
            if name in present[0]["losses"]
            else "–"
            for name in ("largest", "71", "default", "29", "smallest")
        ]
        drawn = [claims.mean_loss(run) for run in present if run["random"]]
        cells.append(
            [
                part,
                f"{mean(run['steps'] for run in present):.0f}",
                f"{mean(run['flop'] for run in present) / 1e12:.2f}",
                f"{mean(run['seconds'] for run in present):.0f}",
                *named,
                claims.with_spread(drawn, signed=False, digits=3) if drawn else "–",
            ]
        )
    if not cells:
        return ""
    mean_predictor = mean(seed["stage1"]["predicting_the_mean"] for seed in seeds.values() if "stage1" in seed)
    header = ["run", "steps", "TFLOP", "seconds", "largest", "71 %", "default", "29 %", "smallest", "random subnets"]
    return f"On new sentences; always predicting the mean target has {mean_predictor:.2f}.\n\n" + markdown(
        header, cells
    )


def _additions(seeds: claims.Seeds) -> str:
    cells = []
    for name, entry in claims.additions(seeds).items():
        if entry["gain"]:
            shares = {measure: _share(entry[measure]) for measure in ("flop", "seconds")}
            cells.append([NAMES[name], claims.with_spread(entry["gain"], " %"), shares["flop"], shares["seconds"]])
    header = ["addition", "loss below the plain recipe's at equal FLOP", "FLOP to reach its loss", "time to reach it"]
    return "Shares of the plain recipe's work, both stages together.\n\n" + markdown(header, cells) if cells else ""


def _share(values: list[float | None]) -> str:
    reached = [100 * value for value in values if value is not None]
    if not reached:
        return "not reached"
    missing = len(values) - len(reached)
    return claims.with_spread(reached, " %", signed=False) + (
        f" ({missing} of {len(values)} never)" if missing else ""
    )


def _with_percent(name: str) -> str:
    return f"{name} %" if name[-1].isdigit() else name


def rounded(value: Any) -> Any:
    """Six digits: more is noise, and makes the file long."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value
