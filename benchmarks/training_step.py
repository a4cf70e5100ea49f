"""One distillation step on the default 27M subnet: ours and the original's in the same loop.

    python benchmarks/training_step.py [--original CHECKOUT] [--json OUT] [--docs docs/performance.md]

A step: HuBERT Base encodes 4 clips of 5 s without gradients, the student predicts its output from masked features,
mean L1, backward through all of the student, front end included, one step of fused AdamW over the supernet's 95M
parameters. Dropout and layer drop are off. Ours uses the accelerated teacher (`lighthubert_hf.acceleration`), the
original's the plain one; the rows of parts show what each brings.
"""

from collections.abc import Callable

import torch
from contenders import (
    SAMPLING_RATE,
    activate_original,
    arguments,
    hubert_base,
    machine,
    markdown,
    matmul_rate,
    measure,
    original_model,
    publish,
    summary,
)
from torch.nn import functional as F

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace
from lighthubert_hf.acceleration import accelerate

OURS = "step, ours"
NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
}


def our_student() -> LightHubertForPreTraining:
    space = SearchSpace.small()
    student = LightHubertForPreTraining(LightHubertConfig(search_space=space, **NO_DROPOUT)).train()
    student.set_active_subnet(space.default())
    return student


def original_student(checkout: str):
    student = original_model(checkout).train()
    student.encoder.layerdrop = 0.0
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    activate_original(student, SearchSpace.small().default())
    return student


def step_of(student, predict: Callable, teacher, audio: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(student.parameters(), 1e-4, fused=True)

    def step() -> None:
        with torch.inference_mode():
            targets = teacher(audio).last_hidden_state
        F.l1_loss(predict(student, audio), targets.clone()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(options) -> dict[str, Callable[[], None]]:
    audio = torch.randn(options.batch, round(options.seconds * SAMPLING_RATE))
    teacher, fast_teacher = hubert_base(), hubert_base()
    accelerate(fast_teacher)
    student = our_student()

    def teach(model) -> None:
        with torch.inference_mode():
            model(audio)

    def learn() -> None:
        student(audio).predictions.mean().backward()
        student.zero_grad()

    contenders = {
        OURS: step_of(our_student(), lambda m, x: m(x).predictions, fast_teacher, audio),
        "teacher alone, accelerated": lambda: teach(fast_teacher),
        "teacher alone, transformers": lambda: teach(teacher),
        "student alone, ours": learn,
    }
    if options.original:
        original = original_student(options.original)

        def predict(model, x: torch.Tensor) -> torch.Tensor:
            return model.forward(x, mask=True)["layer_heads"][-1][0]

        def learn_originally() -> None:
            predict(original, audio).mean().backward()
            original.zero_grad()

        contenders |= {
            "step, original": step_of(original, predict, teacher, audio),
            "student alone, original": learn_originally,
        }
    return contenders


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    times = measure(build(options), options.rounds)
    rows = {name: summary(values) for name, values in times.items()}
    for row in rows.values():
        row["times_ours"] = round(row["median_ms"] / rows[OURS]["median_ms"], 2)
    results = {
        "machine": machine(),
        "audio": f"{options.batch} x {options.seconds:g} s",
        "matmul_gflops": round(matmul_rate(times), 1),
        "contenders": rows,
    }
    cells = [
        [name, f"{row['median_ms']:.0f}", f"{row['least_ms']:.0f}", f"{row['times_ours']:.2f}"]
        for name, row in rows.items()
    ]
    header = [
        f"{results['audio']}, matmul {results['matmul_gflops']:.0f} GFLOP/s",
        "median ms",
        "least ms",
        "× our step",
    ]
    publish("training_step", results, markdown(header, cells), options)


if __name__ == "__main__":
    main()
