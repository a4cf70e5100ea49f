"""Fine-tuning for labels: every task from recipe to folder, labels by hand, scores at any batch size, resuming."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    HubertConfig,
    HubertForSequenceClassification,
    TrainingArguments,
    pipeline,
)

from ... import processes
from . import tiny_architecture

pytest.importorskip("espeakng_loader")

from lighthubert_hf import (
    LightHubertConfig,
    LightHubertForAudioFrameClassification,
    LightHubertForSequenceClassification,
    LightHubertForXVector,
)
from lighthubert_hf.metrics import EqualErrorRate
from lighthubert_hf.training.audio.examples import SpeechExample, read_examples
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.finetuning.classification import (
    ClassCollator,
    Classes,
    ClassificationFineTuning,
    ClassificationTrainer,
)
from lighthubert_hf.training.finetuning.diarization import ActivityCollator, DiarizationTrainer
from lighthubert_hf.training.finetuning.recipe import ClassificationRecipe, FineTuningRecipe
from lighthubert_hf.training.finetuning.run import finetune
from lighthubert_hf.training.finetuning.trainer import SpeechTrainer
from lighthubert_hf.training.finetuning.verification import VerificationTrainer
from lighthubert_hf.training.recipes.loading import load_recipe
from lighthubert_hf.training.recipes.sections import ScheduleSection
from lighthubert_hf.training.synthetic.speech import TRAINING_VOICES
from lighthubert_hf.training.synthetic.tasks import KEYWORDS, VERIFICATION_VOICES, synthesise_task
from lighthubert_hf.training.tasks.diarization import frame_activity

TINY = tiny_architecture.TINY | {
    "tdnn_dim": [16, 16],
    "tdnn_kernel": [3, 1],
    "tdnn_dilation": [1, 1],
    "xvector_output_dim": 16,
}
KINDS = {
    "keywords": (LightHubertForSequenceClassification, "accuracy", 12),
    "intent": (LightHubertForSequenceClassification, "accuracy", 4 + 3 + 4),
    "emotion": (LightHubertForSequenceClassification, "accuracy", 4),
    "speakers": (LightHubertForSequenceClassification, "accuracy", 10),
    "verification": (LightHubertForXVector, "eer", 10),
    "diarization": (LightHubertForAudioFrameClassification, "der", 2),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """`sets(task)`: a folder with a few rows of a synthetic task, made once."""
    known = {}

    def make(task: str) -> str:
        if task not in known:
            known[task] = str(tmp_path_factory.mktemp("sets") / task)
            synthesise_task(task, known[task], examples=24, held_out_examples=12)
        return known[task]

    return make


def make_recipe(folder: str, output: Path, task: str = "classification", **changes) -> ClassificationRecipe:
    data = {
        "name": "test",
        "task": task,
        "output_dir": str(output),
        "model": {"random_config": TINY, "dropout": 0.1},
        "data": {
            "sources": [{"path": folder}],
            "evaluation": {"test": [{"path": folder, "split": "test"}]},
            "batch_seconds": 15.0,
            "max_seconds": 15.0,
        },
        "freezing": {"freeze": "none"},
        "optimizer": {"lr": 1e-3},
        "training": {"steps": 2},
    }
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values} if isinstance(values, dict) else values
    return ClassificationRecipe.model_validate(data)


@pytest.mark.parametrize("name", KINDS)
def test_the_tiny_recipe_runs_to_a_model_with_its_scores_on_the_card(name, tmp_path):
    """Early stopping's best model, checkpoints and thawing are in the recipe; the pipeline runs what it can run."""
    model_class, score, num_labels = KINDS[name]
    changes = ["training.steps=4", "training.evaluate_every=2", "checkpoint.every=2", "data.synthetic_examples=24"]
    sizes = [f"model.random_config.{key}={value}" for key, value in TINY.items() if "tdnn" in key or "xv" in key]
    recipe = load_recipe(FineTuningRecipe, f"finetune-{name}-tiny", [f"output_dir={tmp_path}", *changes, *sizes])
    metrics = finetune(recipe, quiet=True)

    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["evaluation"].keys() == {"validation", "test"}
    assert all(scores[score] >= 0 for scores in metrics["evaluation"].values())
    config = AutoConfig.from_pretrained(metrics["model"])
    assert config.num_labels == len(config.id2label) == num_labels
    assert model_class.from_pretrained(metrics["model"]).config.label2id == {v: k for k, v in config.id2label.items()}
    card = ModelCard.load(Path(metrics["model"]) / "README.md")
    shown = {result.dataset_split: result for result in card.data.eval_results}
    assert shown["test"].metric_type == score
    assert shown["test"].metric_value == pytest.approx(100 * metrics["evaluation"]["test"][score], abs=0.01)
    assert str(tmp_path) not in card.content
    if model_class is LightHubertForSequenceClassification:
        answers = pipeline("audio-classification", metrics["model"])(np.zeros(8000, np.float32), top_k=1)
        assert answers[0]["label"] in config.label2id


class TestClasses:
    def examples(self, **columns):
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        return [SpeechExample(str(i), np.zeros(800, np.float16), None, row) for i, row in enumerate(rows)]

    def test_slots_are_named_and_numbered(self):
        examples = self.examples(action=["on", "off", "on"], room=["b", "a", "c"])
        classes = Classes.of(examples, ("action", "room"))
        assert classes.id2label == {0: "action: off", 1: "action: on", 2: "room: a", 3: "room: b", 4: "room: c"}
        assert [classes.ids(example) for example in examples] == [[1, 1], [0, 0], [1, 2]]
        assert classes.ids(self.examples(action=["on"], room=["z"])[0]) == [1, -100]

    def test_integers_are_places_in_a_list_that_is_given(self):
        classes = Classes({"label": ["yes", "no"]}, listed=True)
        rows = self.examples(label=[1, "yes", 2, "maybe"])
        assert [classes.ids(row) for row in rows] == [[1], [0], [-100], [-100]]
        counted = Classes.of(self.examples(label=[7, 3]), ("label",))
        assert counted.id2label == {0: "3", 1: "7"}

    def test_one_class_is_nothing_to_learn(self):
        with pytest.raises(ValueError, match="have the label 'a': nothing to tell apart"):
            Classes.of(self.examples(label=["a", "a"]), ("label",))


def test_frames_are_active_where_their_middles_are():
    segments = [{"speaker": "b", "start": 0.0, "end": 0.05}, {"speaker": "a", "start": 0.03, "end": 0.2}]
    # Frame i sees 25 ms from 20·i ms on: middles at 12.5, 32.5, 52.5 … ms.
    active = [[0, 1], [1, 1], [1, 0], [1, 0], [1, 0]]
    assert frame_activity(segments, 5, 320, 400).tolist() == active
    assert frame_activity(segments, 5, 320, 400, 3).tolist() == [[*row, 0] for row in active]


def examples_of(kind: str) -> list[SpeechExample]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4_000, 30_000, 6)
    segments = [
        [{"speaker": "x", "start": 0.0, "end": 0.2}, {"speaker": "y", "start": 0.1, "end": n / 32000}] for n in lengths
    ]
    return [
        SpeechExample(
            str(i),
            rng.standard_normal(n).astype(np.float16),
            None,
            {"a": "uvw"[i % 3], "b": "pq"[i % 2], "segments": segments[i]},
        )
        for i, n in enumerate(lengths)
    ]


def make_trainer(kind: str, norm: str, folder, seconds: float) -> SpeechTrainer:
    torch.manual_seed(0)
    examples = examples_of(kind)
    classes = Classes.of(examples, ("a", "b") if kind == "intent" else ("a",))
    num_labels = 2 if kind == "diarization" else sum(classes.sizes)
    if norm == "group":
        keys = {key: value for key, value in TINY.items() if key != "head_dim"}
        model = HubertForSequenceClassification(HubertConfig(**keys, feat_extract_norm="group", num_labels=num_labels))
    else:
        heads = {"verification": LightHubertForXVector, "diarization": LightHubertForAudioFrameClassification}
        config = LightHubertConfig(**TINY, num_labels=num_labels)
        model = heads.get(kind, LightHubertForSequenceClassification)(config)
    trainers = {"verification": VerificationTrainer, "diarization": DiarizationTrainer}
    collate = (
        ActivityCollator("segments", 2, model.config)
        if kind == "diarization"
        else ClassCollator(classes, model.config)
    )
    return trainers.get(kind, ClassificationTrainer)(
        model=model,
        args=TrainingArguments(
            str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, report_to=[], label_names=["labels"]
        ),
        batches=[],
        collate=collate,
        processor=None,
        schedule=ScheduleSection(),
        eval_batch_seconds=seconds,
        **({"trials": {}} if kind == "verification" else {}),
    )


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("keywords", "group"), *((kind, "layer") for kind in ("keywords", "intent", "verification", "diarization"))],
)
def test_scores_do_not_depend_on_the_batch(kind, norm, tmp_path):
    results = []
    for seconds in (0.001, 1000.0):
        trainer = make_trainer(kind, norm, tmp_path, seconds)
        batches = len(trainer.get_eval_dataloader(examples_of(kind)))
        assert batches == (1 if seconds > 1 and norm == "layer" else 6)
        metrics = trainer.evaluate(examples_of(kind))
        results.append({key: value for key, value in metrics.items() if key in SCORES})
    # Losses are means; random models of this size make less than 1e-5 of rounding, and no two scores are that close.
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert len(results[0]) == (1 if kind == "verification" else 2)


SCORES = ("eval_loss", "eval_accuracy", "eval_eer", "eval_der")


def test_losses_are_those_of_slots_and_of_the_best_assignment(tmp_path):
    examples = examples_of("intent")
    trainer = make_trainer("intent", "layer", tmp_path, 1000.0)
    batch = trainer.collate(examples)
    loss, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    by_hand = torch.zeros(len(examples))
    for slot, true in zip((outputs.logits[:, :3], outputs.logits[:, 3:]), batch["labels"].T):
        by_hand -= slot.log_softmax(-1)[range(len(examples)), true]
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)

    trainer = make_trainer("diarization", "layer", tmp_path, 1000.0)
    batch = trainer.collate(examples)
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    swapped = trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"].flip(-1)})
    assert loss.item() == pytest.approx(swapped.item(), rel=1e-6)
    padded = {**batch, "labels": batch["labels"].clone()}
    frames = trainer._frames(batch["attention_mask"])
    for row, count in zip(padded["labels"], frames.tolist()):
        row[count:] = 1  # what is said of padding does not matter
    assert trainer.compute_loss(trainer.model, padded).item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.slow  # CTC does, in test_run.py
def test_it_learns(sets, tmp_path):
    """A small random model tells ten voices apart far better than chance, on what it was trained on."""
    folder = sets("sid")
    changes = {
        "data": {"evaluation": {"train": [{"path": folder}]}, "batch_seconds": 30.0},
        "optimizer": {"lr": 5e-3},
        "training": {"steps": 40},
    }
    scores = finetune(make_recipe(folder, tmp_path / "run", **changes), quiet=True)["evaluation"]["train"]
    assert scores["accuracy"] >= 0.4
    assert scores["loss"] < 0.8 * math.log(len(TRAINING_VOICES))


def weights(metrics):
    return load_file(Path(metrics["model"]) / "model.safetensors")


class Killed(BaseException):
    """As by the operating system: nothing cleans up after it."""


@pytest.mark.parametrize("task", ["classification", "verification"])
def test_an_interruption_changes_nothing(task, sets, tmp_path, monkeypatch):
    """Verification is streamed here, as what does not fit in memory is."""
    folder, data = sets("ks"), {}
    if task == "verification":
        folder = sets("asv")
        data = {"memory_gb": 8e-4, "class_names": list(VERIFICATION_VOICES["train"])}

    def recipe(name):
        settings = {"training": {"steps": 5}, "checkpoint": {"every": 2}, "data": data}
        return make_recipe(folder, tmp_path / name, task, **settings)

    whole = finetune(recipe("whole"), quiet=True)
    assert (whole["training_minutes"] is None) == (task == "verification")
    step = SpeechTrainer.training_step

    def killed_in_step_3(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechTrainer, "training_step", killed_in_step_3)
        with pytest.raises(Killed):
            finetune(recipe("broken"), quiet=True)
    resumed = finetune(recipe("broken"), quiet=True)
    assert resumed["evaluation"] == whole["evaluation"]
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_early_stopping_keeps_the_most_accurate(sets, tmp_path, monkeypatch):
    score, accuracies = ClassificationTrainer.score, iter([0.3, 0.5, 0.4, 0.5])

    def scored(self, rows):
        return score(self, rows) | ({"accuracy": next(accuracies)} if self.is_in_train else {})

    monkeypatch.setattr(ClassificationTrainer, "score", scored)
    training = {"steps": 10, "evaluate_every": 1, "early_stopping_patience": 2}
    metrics = finetune(make_recipe(sets("ks"), tmp_path / "run", training=training), quiet=True)
    assert metrics["steps"] == 4
    best, kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors"), weights(metrics)
    assert best.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in best.items())


def test_adapters_leave_the_front_end_alone_and_train_the_whole_head(sets, tmp_path):
    """The x-vector head has a module named like the encoder's front end."""
    pytest.importorskip("peft")
    changes = {"lora": {"rank": 2}, "optimizer": {"lr": 1e-2}, "training": {"steps": 3, "head_lr": 1e-2}}
    run = finetune(make_recipe(sets("asv"), tmp_path / "run", "verification", **changes), quiet=True)
    base = finetune(
        make_recipe(sets("asv"), tmp_path / "base", "verification", lora={"rank": 2}, optimizer={"lr": 1e-12}),
        quiet=True,
    )
    trained, start = (weights(metrics) for metrics in (run, base))
    changed = {name for name in trained if not torch.allclose(trained[name], start[name], atol=1e-6)}
    assert not any(".feature_extractor." in name for name in changed)
    for part in ("projector.", "tdnn.0.", "feature_extractor.", "classifier.", "objective."):
        assert any(name.startswith(part) for name in changed)
    assert any(".q_proj." in name for name in changed)


def test_gradient_checkpointing_and_bf16(sets, tmp_path):
    training = {"mixed_precision": "bf16", "gradient_checkpointing": True}
    metrics = finetune(make_recipe(sets("sd"), tmp_path / "run", "diarization", training=training), quiet=True)
    assert metrics["evaluation"]["test"]["der"] >= 0
    assert math.isfinite(metrics["evaluation"]["test"]["loss"])


def test_trials_are_those_of_a_file_or_all_pairs(sets, tmp_path, monkeypatch):
    """The synthetic list holds all pairs, so both ways agree; one trial of each kind is decided by two cosines."""
    folder = sets("asv")
    lines = Path(folder, "trials.txt").read_text(encoding="utf-8").splitlines()
    data = {"trials": {"test": f"{folder}/trials.txt"}}
    with_file = finetune(make_recipe(folder, tmp_path / "a", "verification", data=data), quiet=True)
    without = finetune(make_recipe(folder, tmp_path / "b", "verification"), quiet=True)
    assert with_file["evaluation"] == without["evaluation"]
    pair = [next(line for line in lines if line.startswith(kind)) for kind in "10"]
    (tmp_path / "two.txt").write_text("\n".join(pair))
    data = {"trials": {"test": str(tmp_path / "two.txt")}}
    training = {"steps": 2, "evaluate_every": 1}
    seen, score = [], VerificationTrainer.score
    monkeypatch.setattr(
        VerificationTrainer, "score", lambda self, rows: seen.append(self._trials) or score(self, rows)
    )
    two = finetune(make_recipe(folder, tmp_path / "c", "verification", data=data, training=training), quiet=True)
    assert [len(trials) for trials in seen] == [2, 2, 2]  # while training, too
    assert two["evaluation"]["test"]["eer"] in [
        EqualErrorRate().compute(predictions=scores, references=[1, 0])["eer"] for scores in ([1, 0], [0, 1])
    ]
    (tmp_path / "wrong.txt").write_text("1 test-000000 nobody\n0 test-000000 test-000001\n")
    data = {"trials": {"test": str(tmp_path / "wrong.txt")}}
    with pytest.raises(ValueError, match=r"1 utterances that are not in the held-out set, such as 'nobody'"):
        finetune(make_recipe(folder, tmp_path / "d", "verification", data=data), quiet=True)


def test_what_cannot_be_learnt_is_left_out_and_counted(sets, tmp_path):
    names = [*KEYWORDS, "_silence_"]  # without the unknown words
    metrics = finetune(make_recipe(sets("ks"), tmp_path / "run", data={"class_names": names}), quiet=True)
    assert metrics["dropped"] == 2


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("verification", {"data": {"label_columns": ["a", "b"]}}, "reads one column of labels"),
        ("diarization", {"data": {"class_names": ["a", "b"]}}, "are those of one column of classes"),
        ("verification", {"data": {"trials": {"dev": "x"}}}, "'dev', which is no set of data.evaluation"),
        ("classification", {"data": {"synthetic_task": "ks"}}, "exactly one of data.sources and data.synthetic_task"),
        ("classification", {"decoding": {}}, "Extra inputs are not permitted"),
    ],
)
def test_recipes_that_make_no_sense(task, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_recipe("folder", tmp_path, task, **changes)


def test_data_that_do_not_fit_the_recipe(sets, tmp_path):
    with pytest.raises(ValueError, match=r"has no 'label'; it has \['action', 'id', 'location', 'object'\]"):
        finetune(make_recipe(sets("ic"), tmp_path / "a"), quiet=True)
    slots = {"label_columns": ["action", "object"], "memory_gb": 8e-4, "evaluation": {}}
    with pytest.raises(ValueError, match=r"give data\.class_names, or raise data\.memory_gb"):
        finetune(make_recipe(sets("ic"), tmp_path / "b", data=slots), quiet=True)
    plain = {"model": {"random_config": None, "path": str(tmp_path / "hubert")}}
    HubertConfig().save_pretrained(tmp_path / "hubert")
    with pytest.raises(ValueError, match="not a speech encoder that AutoModelForAudioXVector knows"):
        finetune(make_recipe(sets("asv"), tmp_path / "c", "verification", **plain), quiet=True)


def test_the_command_knows_the_models():
    """In the `lighthubert` command the Auto classes are registered late, for the sake of `--help`."""
    code = """
import lighthubert_command
import lighthubert_hf.training.finetuning.model
from transformers import AutoModelForCTC
from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
print(LightHubertConfig in AutoModelForCTC._model_mapping)
"""
    assert processes.run("-c", code).stdout == "True\n"


@pytest.mark.parametrize("streamed", [False, True])
def test_classes_keep_the_names_that_the_data_set_knows(streamed, tmp_path):
    """Folders of audio files are classes to `datasets`, which numbers them."""
    names, rng = ["_silence_", "no", "yes"], np.random.default_rng(0)
    for split, kept in (("train", names), ("test", names[1:])):  # so that numbers would differ
        for name in kept:
            folder = tmp_path / "words" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                soundfile.write(folder / f"{index}.wav", rng.normal(0, 0.1, 8000), 16000)
    data = {"memory_gb": 1e-4, "class_names": names} if streamed else {}
    metrics = finetune(make_recipe(str(tmp_path / "words"), tmp_path / "run", data=data), quiet=True)
    config = AutoConfig.from_pretrained(metrics["model"])
    assert config.id2label == dict(enumerate(names))
    (source,) = [AudioSource(str(tmp_path / "words"), "test", all_columns=True)]
    assert {e.columns["label"] for e in read_examples([source], label_columns=["label"], progress=False)} == {
        "no",
        "yes",
    }


def test_held_out_classes_that_are_not_learnt_are_said(tmp_path, sets, caplog):
    recipe = make_recipe(sets("ks"), tmp_path)
    task = ClassificationFineTuning(recipe)
    task.classes = Classes({"label": ["a", "b"]})
    examples = [
        SpeechExample(str(i), np.zeros(800, np.float16), None, {"label": name}) for i, name in enumerate("abc")
    ]
    with caplog.at_level("WARNING"):
        task.check_held_out("test", examples)
    assert "1 of 3 utterances of test are of classes that are not learnt, as ['c']; they count as wrong" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 1 utterances of test .* \['c'\]; learnt are \['a', 'b'\]"):
        task.check_held_out("test", examples[2:])
