"""What a short look-ahead costs, and what training for it gives back: loss and phonemes, in miniature.

    python benchmarks/miniature/lookahead.py [--setting tiny] [--output RUN] [--seed 0] [--json OUT]

Two supernets learn from the miniature's teacher, from its weights and with the same work: one on whole utterances,
one whose recipe has the section `streaming`. Each is judged on whole utterances and in chunks of 0.32 s with 1.28 s of
past and 0, 80 and 320 ms of look-ahead: the default subnet's distillation loss, and the phone error rate of a probe on
its frozen features, computed in such chunks for training and testing. What is finished is not done again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for what all benchmarks share

import distilling
import torch
from contenders import machine, markdown, publish
from distilling import Workshop
from parts import Part, Results, run_part
from probing import _data
from settings import SETTINGS

from lighthubert_hf import LightHubertModel
from lighthubert_hf.files import read_object, scratch_folder, write_json
from lighthubert_hf.long_audio import seconds_to_frames
from lighthubert_hf.streaming.chunks import ChunkContext, encode_in_chunks
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.recipes.loading import parse_recipe
from lighthubert_hf.training.superb.harness import evaluate_model
from lighthubert_hf.training.superb.settings import EvaluationSettings

CHUNK, LEFT = 0.32, 1.28
LOOKAHEADS = (None, 0.32, 0.08, 0.0)  # seconds; None: whole utterances
TRAINING = {
    "whole utterances": None,
    "half in chunks": {
        "share": 0.5,
        "chunk_seconds": CHUNK,
        "left_seconds": [LEFT],
        "right_seconds": [0.0, 0.08, 0.32],
    },
}


class Hearing(LightHubertModel):
    """An encoder that hears chunks with a context, where one is set."""

    context: ChunkContext | None = None

    def encode(self, features, attention_mask=None, mask_time_indices=None, output_hidden_states=None, **options):
        context, self.context = self.context, None
        try:
            if context is None:
                return super().encode(
                    features, attention_mask, mask_time_indices, output_hidden_states=output_hidden_states, **options
                )
            return encode_in_chunks(self, features, context, attention_mask, mask_time_indices, output_hidden_states)
        finally:
            self.context = context


def context_of(lookahead: float | None, hop: int = 320) -> ChunkContext | None:
    if lookahead is None:
        return None
    return ChunkContext(*(seconds_to_frames(seconds, hop) for seconds in (CHUNK, LEFT, lookahead)))


def trained(shop: Workshop, name: str) -> dict[str, Any]:
    """Distil; steps as many as the work of the first way of training allows."""
    part, student, steps = f"streaming-{name.replace(' ', '-')}", distilling._supernet(shop), shop.setting.total_steps

    def recipe(section: dict | None, steps: int):
        made = distilling._recipe(shop, part, student, distilling.PLAIN, steps)
        return parse_recipe(type(made), made.model_dump(mode="json") | {"streaming": section})

    section = TRAINING[name]
    if section is not None:  # a chunk's context is computed along with it
        plain = distilling._flop_per_second(shop, recipe(None, steps))
        each = [section | {"share": 1.0, "right_seconds": [right]} for right in section["right_seconds"]]
        chunks = sum(distilling._flop_per_second(shop, recipe(one, steps)) for one in each) / len(each)
        steps = max(1, round(steps * plain / (plain + section["share"] * (chunks - plain))))
    made = recipe(section, steps)
    distill(made, show_progress=False)
    return {"part": part, "steps": steps}


def judged(shop: Workshop, part: str) -> list[dict[str, Any]]:
    model = shop.model(part)
    encoder = model.lighthubert
    encoder.__class__ = Hearing
    subnet = shop.architecture.named_subnets()["default"]
    score = shop.score(model, "test_sentences", shop.setting.scored_utterances)
    rows = []
    for lookahead in LOOKAHEADS:
        encoder.context = context_of(lookahead)
        loss = score(subnet)
        static = encoder.extract_subnet(subnet)
        static.__class__, static.context = Hearing, context_of(lookahead)
        rows.append({"lookahead": lookahead, "loss": loss, "per": phone_error_rate(shop, part, lookahead, static)})
    return rows


def phone_error_rate(shop: Workshop, part: str, lookahead: float | None, model: torch.nn.Module) -> float:
    setting = shop.setting
    settings = EvaluationSettings(
        preset="tiny",
        rates={"pr": {"steps": setting.probe_steps["pr"]}},
        validations=1,
        seed=shop.seed,
        max_train_examples=setting.probe_max_train,
        max_eval_examples=setting.probe_max_test,
    )
    output = shop.folder("streaming-probes") / f"{part}-{lookahead}"
    with scratch_folder(shop.folder("streaming-probes") / "features") as cache:
        results = evaluate_model(model, ("pr",), _data(shop), output, settings, cache=cache, progress=False)
    return next(iter(results["tasks"]["pr"]["metrics"].values()))


def study(shop: Workshop) -> dict[str, Any]:
    found = {}
    for name in TRAINING:
        done = shop.folder("streaming") / f"{name.replace(' ', '-')}.json"
        if not done.is_file():
            run = trained(shop, name)
            write_json(done, {"steps": run["steps"], "rows": judged(shop, run["part"])})
        found[name] = read_object(done)
    return found


def table(found: dict[str, Any]) -> str:
    cells = []
    for index, lookahead in enumerate(LOOKAHEADS):
        heard = "all" if lookahead is None else f"{lookahead * 1000:.0f} ms"
        rows = [run["rows"][index] for run in found.values()]
        cells.append([heard, *(f"{row['loss']:.3f}" for row in rows), *(f"{100 * row['per']:.1f} %" for row in rows)])
    columns = [f"{what}, trained on {name}" for what in ("loss", "phone error rate") for name in found]
    return markdown(["look-ahead", *columns], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--output", type=Path, help="folder of a miniature (default runs/miniature-SETTING)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="OUT", help="write all results to this file")
    parser.add_argument("--docs", metavar="FILE", help="replace this benchmark's table in a Markdown file")
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    output = options.output or Path("runs") / f"miniature-{options.setting}"
    Results(output).claim(setting)
    corpus = Part("corpus", None)
    for part in (corpus, Part("teacher", None, (corpus,))):
        run_part(part, setting, output)
    found = study(Workshop(output, setting, options.seed))
    publish("miniature/lookahead", {"machine": machine(), "seed": options.seed, "runs": found}, table(found), options)


if __name__ == "__main__":
    main()
