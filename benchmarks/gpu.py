"""What only a GPU can show, in one command of at most 20 minutes that goes on where it stopped.

    python benchmarks/gpu.py [runs/gpu] [--minutes 20] [--original CHECKOUT]   # all parts
    python benchmarks/gpu.py --device cpu --tiny                               # the same program, tiny, in two minutes
    python benchmarks/gpu.py --tables benchmarks/results/gpu.json              # into the guides

Parts: the tests marked `gpu`; encoding 1 s, 10 s and 32 × 10 s beside transformers and the original, compiled and not;
training steps of every full-size recipe in bf16, by seconds of audio in a batch; `economical` for a quarter of an
hour on synthetic speech. Weights are random, the training steps' audio too. What a part found is in the folder's
`gpu.json` as soon as it is done, and a part that is there is not run again.

The share of the peak is a computation's FLOP per second over that of a square bf16 product in the same part. What
fails (a kernel that is missing, memory that does not suffice) is written down with its reason, and the rest goes on.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from contenders import SAMPLING_RATE, activate_original, count_flop, hubert_base, machine, original_model, static_model
from gpu_tables import insert_tables
from training_step import OURS, contender

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.costs.measuring import alternate, describe_machine, stopwatch
from lighthubert_hf.files import write_json
from lighthubert_hf.training.distillation.cost import count_cost
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.sampler import StepSubnets
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import DTYPES, load_teacher
from lighthubert_hf.training.recipes.loading import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
TINY_SHAPE = {
    "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
RECIPES = [name for name in shipped_recipes(DistillationRecipe) if not name.endswith("-tiny")]
IN_DETAIL = ("lighthubert-stage1", "lighthubert-small", "economical")  # by more than their own batch
PROCESSES = {"multilingual": 4, "economical": 4}  # of the recipe as it is meant; the others: 8


class Size(NamedTuple):
    """How large everything is."""

    shape: dict[str, Any]  # of a HuBERT
    matmul: int
    encoding: tuple[tuple[int, float], ...]  # rows and seconds of audio
    rounds: int
    steps: int
    batches: tuple[float, ...]  # seconds of audio
    recipe: str  # suffix of the recipes' names
    synthetic_minutes: float


FULL = Size({}, 8192, ((1, 1), (1, 10), (32, 10)), 30, 12, (60, 240, 480), "", 240)
TINY = Size(TINY_SHAPE, 128, ((1, 1), (2, 0.5)), 1, 2, (6,), "-tiny", 0.5)


class Part(NamedTuple):
    minutes: float  # that it takes at most, about
    run: Callable[[], dict[str, Any]]  # its result; "complete" says whether it is done, if it may need several calls


# Tests


def run_tests(options) -> dict[str, Any]:
    """Of the tests in `tests/gpu` on this device: counts, what failed, and why others were left out."""
    report = Path(options.folder) / "tests.xml"
    chosen = "gpu" if options.device.type == "cuda" else "not gpu and not slow"
    command = [sys.executable, "-m", "pytest", "-q", "-m", chosen, "tests/gpu", f"--junitxml={report.absolute()}"]
    subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT)
    cases = list(ElementTree.parse(report).iter("testcase"))
    if not cases:
        raise RuntimeError("pytest ran no test")

    def found(kind: str) -> dict[str, str]:
        return {
            f"{case.get('classname')}::{case.get('name')}": case.find(kind).get("message", "").partition("\n")[0]
            for case in cases
            if case.find(kind) is not None
        }

    failed, skipped = found("failure") | found("error"), found("skipped")
    passed = len(cases) - len(failed) - len(skipped)
    return {
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "seconds": sum(float(c.get("time")) for c in cases),
    }


# Encoding

BF16, FP32 = torch.bfloat16, torch.float32
# Whose shape, the type, the attention if not torch's own, and how it is compiled.
VARIANTS: dict[str, tuple[str, torch.dtype, str | None, dict[str, str] | None]] = {
    "ours": ("ours", BF16, None, None),
    "ours, compiled": ("ours", BF16, None, {}),
    "ours, compiled into CUDA graphs": ("ours", BF16, None, {"mode": "reduce-overhead"}),
    "ours, flex attention": ("ours", BF16, "flex_attention", None),
    "ours, flash attention 2": ("ours", BF16, "flash_attention_2", None),
    "transformers HubertModel": ("transformers", BF16, None, None),
    "transformers, compiled": ("transformers", BF16, None, {}),
    "HuBERT Base": ("HuBERT Base", BF16, None, None),
    "original": ("original", BF16, None, None),
    "ours, fp32": ("ours", FP32, None, None),
    "transformers, fp32": ("transformers", FP32, None, None),
    "original, fp32": ("original", FP32, None, None),
}


def make_model(shape: str, options) -> torch.nn.Module:
    if shape == "original":
        model = original_model(options.original)
        activate_original(model, SearchSpace.small().default())
        return model
    if shape == "HuBERT Base":
        return hubert_base(**options.size.shape)
    if options.tiny:
        ours = LightHubertModel(LightHubertConfig(**TINY_SHAPE, head_dim=16)).eval()
    else:
        ours = static_model(SearchSpace.small().default())
    return ours if shape == "ours" else ours.to_hubert()


def make_encoder(name: str, audio: torch.Tensor, options) -> tuple[Callable[[], Any], int]:
    """Encodes `audio`, and its FLOP."""
    shape, dtype, attention, compiling = VARIANTS[name]
    model, audio = make_model(shape, options).to(options.device, dtype), audio.to(options.device, dtype)
    encode = model.extract_features if shape == "original" else model
    flop = count_flop(lambda: encode(audio))
    if attention is not None:
        model.set_attn_implementation(attention)
    if compiling is not None:
        # On the CPU the graph alone, not a compiler: this is there to see that the program runs.
        how = compiling if options.device.type == "cuda" else {"backend": "aot_eager"}
        encode = torch.compile(encode, **how)
    encode(audio)
    return lambda: encode(audio), flop


@torch.no_grad()
def encode_audio(batch: int, seconds: float, options) -> dict[str, Any]:
    """Median milliseconds of every variant, in turn."""
    audio = torch.randn(batch, round(seconds * SAMPLING_RATE))
    runs, flop, failed = {MATMUL: square_product(options)}, {}, {}
    left_out = (
        set() if batch * seconds == 1 else {"ours, compiled into CUDA graphs"}
    )  # spare launches, few as they are
    if options.device.type == "cpu":
        left_out.add("ours, flex attention")  # compiles for minutes there; the tests have it
    for name in VARIANTS:
        if name in left_out or (name.startswith("original") and not options.original):
            continue
        try:
            runs[name], flop[name] = make_encoder(name, audio, options)
        except Exception as error:
            failed[name] = reason(error)
    times = alternate(runs, options.device, options.size.rounds)
    peak = rate(2 * options.size.matmul**3, times.pop(MATMUL))
    rows = {
        name: {
            "ms": round(ms, 3),
            "times_ours": round(ms / times["ours"], 2),
            "share": round(rate(flop[name], ms) / peak, 4),
        }
        for name, ms in times.items()
    }
    return {"batch": batch, "seconds": seconds, "peak_tflops": peak / 1e12, "contenders": rows, "failed": failed}


# Training steps


def bench_recipe(name: str, options) -> DistillationRecipe:
    """A recipe with nothing to download: teachers and students are random, and of the right shapes."""
    suffix = options.size.recipe
    changes = ["validation=null", "training.accumulation=1", "training.mixed_precision=bf16"]
    recipe = load_recipe(DistillationRecipe, f"{name}{suffix}")
    if recipe.teacher.path:
        changes += ["teacher.path=null", "teacher.random_config={}"]
    if recipe.student.init not in ("teacher", "random"):  # of an earlier stage
        changes += ["student.init=random", "student.config={feat_extract_norm: layer}"]
        if recipe.student.search_space in (None, "teacher"):
            small = load_recipe(DistillationRecipe, f"lighthubert-small{suffix}").model_dump(mode="json")
            changes.append(f"student.search_space={json.dumps(small['student']['search_space'])}")
    return load_recipe(DistillationRecipe, f"{name}{suffix}", changes)


def train_recipe(name: str, options) -> dict[str, Any]:
    """Seconds of audio per second of a recipe's steps, by seconds of audio in a batch. No data is loaded."""
    recipe, device = bench_recipe(name, options), options.device
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=recipe.training.mixed_precision)
    encoder = load_teacher(recipe.teacher.model_copy(update={"dtype": "float32"}), 0)
    student = build_student(recipe.student, encoder, 0)
    encoder.to(device, DTYPES[recipe.teacher.dtype])
    step = contender(OURS, student, encoder, recipe, accelerator).step
    space, flop = student.search_space, count_cost(recipe).total
    sampler = StepSubnets(space, recipe.sampler, 0) if space else None
    own = recipe.data.batch_seconds
    batches = sorted({own, *(options.size.batches if name in IN_DETAIL else ())})
    product, rows, failed = square_product(options), {}, {}
    for seconds in batches:
        try:
            rows[str(seconds)] = time_steps(step, sampler, seconds, recipe.data.crop_seconds, options)
        except torch.OutOfMemoryError as error:
            failed[str(seconds)] = reason(error)
            torch.cuda.empty_cache()
    product()
    peak = rate(2 * options.size.matmul**3, min(stopwatch(product, device) for _ in range(options.size.rounds)))
    for row in rows.values():
        row["share"] = round(flop * row["audio_per_second"] / peak, 4)
    audio_hours = recipe_hours(name, options)
    return {
        "recipe": name, "own_batch_seconds": own, "audio_hours": audio_hours, "flop_per_second": flop,
        "peak_tflops": peak / 1e12, "batches": rows, "failed": failed,
    }  # fmt: skip


def recipe_hours(name: str, options) -> float:
    """Audio of the whole recipe, as it is meant to be run."""
    recipe = load_recipe(DistillationRecipe, f"{name}{options.size.recipe}")
    step = recipe.data.batch_seconds * recipe.training.accumulation * PROCESSES.get(name, 8)
    return recipe.training.steps * step / 3600


def time_steps(step, sampler, seconds: float, crop: float, options) -> dict[str, Any]:
    """Of steps of different subnets, the mean; two more come first."""
    audio = torch.randn(max(int(seconds / crop), 1), round(min(crop, seconds) * SAMPLING_RATE))
    batch = {"input_values": audio, "attention_mask": torch.ones_like(audio, dtype=torch.long)}
    batch["ids"] = [str(row) for row in range(len(audio))]
    cuda, times, skipped = options.device.type == "cuda", [], 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def run(index: int) -> None:
        nonlocal skipped
        skipped += step.run(index, [batch], sampler.subnets(index) if sampler else (None,)).skipped

    for index in range(options.size.steps + 2):
        times.append(stopwatch(lambda index=index: run(index), options.device))
    mean = sum(times[2:]) / options.size.steps
    return {
        "step_ms": round(mean, 2),
        "audio_per_second": round(1e3 * audio.numel() / SAMPLING_RATE / mean, 1),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "skipped": skipped,
    }


# A quarter of an hour of `economical`


def train_economical(results: dict[str, Any], options) -> dict[str, Any]:
    """Loss against time of a run with data, validation and all; a later call goes on with it."""
    folder = Path(options.folder) / "economical"
    log, wanted = folder / "log.jsonl", options.economical_minutes
    done = trained_minutes(log)
    recipe = ["economical-tiny"] if options.tiny else full_economical(results, options)
    if (folder / "recipe.yaml").exists():
        recipe = [str(folder / "recipe.yaml")]
    command = [sys.executable, "-m", "lighthubert_hf.cli", "distill", *recipe, f"output_dir={folder}"]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if options.device.type == "cpu" else {})
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None and done < wanted and time.monotonic() < options.deadline - 30:
        time.sleep(0.5)
        done = trained_minutes(log)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # saves a checkpoint
    if process.wait() not in (0, -signal.SIGTERM):
        raise RuntimeError(f"distillation ended with {process.returncode} after {time.monotonic() - start:.0f} s")
    if not (folder / "recipe.yaml").exists():
        raise RuntimeError("the time was over before the run began")
    return {
        "complete": process.returncode == 0 or trained_minutes(log) >= wanted,
        "minutes": round(trained_minutes(log), 2),
        "recipe": (folder / "recipe.yaml").read_text(),
        "log": read_log(log),
    }


def full_economical(results: dict[str, Any], options) -> list[str]:
    """The recipe on synthetic speech, with as many steps as the time will be enough for."""
    if "training-economical" not in results:
        raise RuntimeError("economical needs the rate that the part training-economical measures; run that first")
    measured = results["training-economical"]["result"]
    seconds = measured["own_batch_seconds"]
    audio_per_second = measured["batches"][str(seconds)]["audio_per_second"]
    steps = max(int(0.9 * 60 * options.economical_minutes * audio_per_second / seconds), 100)
    workers = max((os.cpu_count() or 2) - 2, 1)
    return [
        "economical", "teacher.path=null", "teacher.random_config={}", "data.sources=[]",
        f"data.synthetic_minutes={options.size.synthetic_minutes}", f"data.num_workers={workers}",
        "validation.sources=[]", "validation.max_examples=64", f"validation.every={max(steps // 10, 1)}",
        f"training.steps={steps}", f"checkpoint.every={steps}", "logging.every=10",
    ]  # fmt: skip


def trained_minutes(log: Path) -> float:
    """Time spent in training steps, without validation."""
    seconds, before = 0.0, 0.0
    for entry in read_log(log):
        if "audio_seconds" in entry:
            seconds += (entry["audio_seconds"] - before) / entry["audio_per_second"]
            before = entry["audio_seconds"]
    return seconds / 60


# All of it

MATMUL = "matmul"


def square_product(options) -> Callable[[], torch.Tensor]:
    a, b = (torch.randn(options.size.matmul, options.size.matmul, device=options.device, dtype=BF16) for _ in "ab")
    return lambda: a @ b


def rate(flop: float, milliseconds: float) -> float:
    """FLOP per second."""
    return 1e3 * flop / milliseconds


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def all_parts(results: dict[str, Any], options) -> dict[str, Part]:
    """By name, in their order; `results` are those of parts that ran before."""
    parts = {"tests": Part(4, lambda: run_tests(options))}
    for batch, seconds in options.size.encoding:
        run = lambda batch=batch, seconds=seconds: encode_audio(batch, seconds, options)  # noqa: E731
        parts[f"encoding-{batch}x{seconds}"] = Part(2, run)
    for name in RECIPES:
        parts[f"training-{name}"] = Part(1, lambda name=name: train_recipe(name, options))
    return parts | {"economical": Part(4, lambda: train_economical(results, options))}


def run_part(name: str, part: Part, results: dict[str, Any], options) -> bool:
    """Run a part unless `results` have it, and add what it found; whether it is done now."""
    if name in results and results[name]["complete"]:
        print(f"{name}: done before")
        return True
    left = (options.deadline - time.monotonic()) / 60
    if left < part.minutes and not options.tiny:
        print(f"{name}: {left:.1f} minutes are left, it may take {part.minutes}; call again")
        return False
    print(f"{name} …", flush=True)
    start = time.monotonic()
    try:
        result = part.run()
    except Exception:
        traceback.print_exc()
        return False
    complete, seconds = result.pop("complete", True), round(time.monotonic() - start, 1)
    where = machine() | describe_machine(options.device)
    results[name] = {
        "complete": complete, "seconds": seconds, "machine": where, "tiny": options.tiny, "result": result,
    }  # fmt: skip
    print(f"{name}: {seconds} s", flush=True)
    return complete


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/gpu", help="for results (default %(default)s)")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--tiny", action="store_true", help="models that take seconds on a CPU")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these; a part's first word is enough")
    parser.add_argument("--minutes", type=float, default=20, help="of this call (default %(default)s)")
    parser.add_argument("--economical-minutes", type=float, default=15, help="of its training (default %(default)s)")
    parser.add_argument("--original", metavar="CHECKOUT", help="the original implementation (commit d53e545)")
    parser.add_argument("--tables", metavar="FILE.json", help="run nothing; put what FILE holds into the guides")
    parser.add_argument("--docs", default=ROOT / "docs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.size, options.deadline = TINY if options.tiny else FULL, time.monotonic() + 60 * options.minutes
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.tables:
        insert_tables(json.loads(Path(options.tables).read_text(encoding="utf-8")), options.docs)
        return 0
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; `--device cpu --tiny` tries the program out", file=sys.stderr)
        return 2
    file = Path(options.folder) / "gpu.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results = load(file)
    if any(part["tiny"] != options.tiny for part in results.values()):
        print(
            f"{file} holds results {'without' if options.tiny else 'of'} --tiny; name another folder", file=sys.stderr
        )
        return 2
    parts = all_parts(results, options)
    if options.parts:
        parts = {n: p for n, p in parts.items() if n in options.parts or n.partition("-")[0] in options.parts}
    torch.manual_seed(0)
    done = {}
    for name, part in parts.items():
        done[name] = run_part(name, part, results, options)
        write_json(file, results, indent=1)
    print(f"{sum(done.values())} of {len(done)} parts are done; results in {file}")
    return 0 if all(done.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
