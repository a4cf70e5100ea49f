"""What distillation costs on the machine that `training_step.py` measured: hours for one pass over so much audio.

    python benchmarks/training_cost.py [benchmarks/results/training_step.json] [--docs docs/training.md]

Hours = hours of audio / (seconds of audio per second). A recipe makes many passes: steps times audio per step.
"""

import argparse
import json
from pathlib import Path

from contenders import add_outputs, markdown, publish

RESULTS = Path(__file__).parent / "results" / "training_step.json"
AUDIO_HOURS = (960, 60_000)


def table(settings: list[dict]) -> str:
    """A row per setting and contender that trains the stage's subnets."""
    header = ["machine-hours for one pass", "audio s/s", *(f"over {hours:,} h" for hours in AUDIO_HOURS)]
    rows = []
    for setting in settings:
        for name, row in setting["contenders"].items():
            rate = row["audio_per_second"]
            label = f"{setting['stage']}, {setting['processes']} process(es): {name}"
            rows.append([label, f"{rate:.2f}", *(f"{hours / rate:,.0f}" for hours in AUDIO_HOURS)])
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", default=RESULTS, help="what training_step.py wrote")
    add_outputs(parser)
    options = parser.parse_args()
    results = json.loads(Path(options.results).read_text(encoding="utf-8"))
    publish("training_cost", results, table(results["settings"]), options)


if __name__ == "__main__":
    main()
