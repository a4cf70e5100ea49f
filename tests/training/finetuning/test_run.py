"""From a recipe to a recogniser: every kind of start, freezing, resuming, early stopping, adapters, publishing."""

import copy
import json
import math
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCTC, HubertConfig, HubertModel, pipeline
from transformers import logging as transformers_logging

from lighthubert_hf import LightHubertForCTC, LightHubertModel
from lighthubert_hf.training.audio.examples import read_examples
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.finetuning import run as finetuning
from lighthubert_hf.training.finetuning.ctc import CtcTrainer
from lighthubert_hf.training.finetuning.model import Thawing, build_model
from lighthubert_hf.training.finetuning.processors import build_processor, characters
from lighthubert_hf.training.finetuning.recipe import CtcRecipe, FreezingSection, PretrainedSection
from lighthubert_hf.training.finetuning.run import finetune
from lighthubert_hf.training.finetuning.skipping import NonFiniteSteps
from lighthubert_hf.training.runs.checkpoints import latest_checkpoint
from lighthubert_hf.training.synthetic.speech import synthesise_corpus

from ..stored_speech import encode
from .tiny_architecture import TINY

HEAD = {"vocab_size": 20, "pad_token_id": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech") / "corpus"
    synthesise_corpus(folder, minutes=0.3, held_out_minutes=0.1, num_shards=2)
    return str(folder)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory, make_model):
    folder = tmp_path_factory.mktemp("models") / "supernet"
    make_model(LightHubertModel).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("models") / "hubert"
    config = {key: value for key, value in TINY.items() if key != "head_dim"}
    HubertModel(HubertConfig(**config, feat_extract_norm="layer")).save_pretrained(folder)
    return str(folder)


def make_recipe(corpus, output, **changes):
    """A recipe of two steps; `changes` replace keys inside its sections."""
    sources = [{"path": corpus, "text_column": "text"}]
    held_out = {"sentences": [{"path": corpus, "split": "test_sentences", "text_column": "text"}]}
    data = {
        "name": "test",
        "output_dir": str(output),
        "model": {"random_config": TINY, "dropout": 0.1},
        "data": {"sources": sources, "evaluation": held_out, "batch_seconds": 10.0, "max_seconds": 10.0},
        "freezing": {"freeze": "none"},
        "optimizer": {"lr": 1e-3},
        "training": {"steps": 2},
    }
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values} if isinstance(values, dict) else values
    return CtcRecipe.model_validate(data)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


class TestFinetuning:
    def test_leaves_a_model_that_the_pipeline_runs_and_scores_of_every_set(self, corpus, tmp_path):
        sets = {
            name: [{"path": corpus, "split": split, "text_column": "text"}]
            for name, split in (("sentences", "test_sentences"), ("voice", "test_voice"), ("again", "test_voice"))
        }
        metrics = finetune(make_recipe(corpus, tmp_path / "run", data={"evaluation": sets}), quiet=True)

        assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert metrics["evaluation"].keys() == {"sentences", "voice", "again"}
        assert all(math.isfinite(value) for scores in metrics["evaluation"].values() for value in scores.values())
        assert metrics["training_minutes"] == pytest.approx(0.3, abs=0.06)
        examples = read_examples(
            [AudioSource(corpus, "test_voice", text_column="text")],
            progress=False,
        )
        assert metrics["evaluation"]["voice"]["examples"] == len(examples)
        recogniser = pipeline("automatic-speech-recognition", metrics["model"])
        assert isinstance(recogniser.model, LightHubertForCTC)
        assert recogniser.type == "ctc"
        assert isinstance(recogniser(examples[0].waveform.astype(np.float32))["text"], str)
        assert not (tmp_path / "run" / "checkpoints").exists()

    def test_learns(self, corpus, tmp_path):
        changes = {"training": {"steps": 30}, "optimizer": {"lr": 5e-3}, "spec_augment": None}
        short = finetune(make_recipe(corpus, tmp_path / "short", **changes | {"training": {"steps": 1}}), quiet=True)
        long = finetune(make_recipe(corpus, tmp_path / "long", **changes), quiet=True)
        loss = {name: run["evaluation"]["sentences"]["loss"] for name, run in (("short", short), ("long", long))}
        assert loss["long"] < 0.9 * loss["short"]

    def test_the_same_recipe_gives_the_same_model_and_another_seed_another(self, corpus, tmp_path):
        runs = [finetune(make_recipe(corpus, tmp_path / name), quiet=True) for name in "ab"]
        assert_equal(*(weights(run["model"]) for run in runs))
        other = finetune(make_recipe(corpus, tmp_path / "c", seed=1), quiet=True)
        assert not torch.equal(weights(runs[0]["model"])["lm_head.weight"], weights(other["model"])["lm_head.weight"])

    def test_labelled_minutes_take_the_same_part_for_the_same_seed(self, corpus):
        def read(seed):
            source = AudioSource(corpus, text_column="text")
            return read_examples([source], minutes=0.2, shuffle_seed=seed, progress=False)

        first, again, other = read(0), read(0), read(1)
        assert [e.id for e in first] == [e.id for e in again] != [e.id for e in other]
        assert 0.2 <= sum(len(e.waveform) for e in first) / 16000 / 60 < 0.3

    def test_rows_left_out_are_counted_and_short_held_out_clips_are_scored(self, corpus, tmp_path):
        clips = {"tiny": 0.03, "none": 0.01, "good": 0.5, "long": 3.0}
        for name, seconds in clips.items():
            (tmp_path / f"{name}.flac").write_bytes(encode(seconds))
        lines = [{"audio": f"{name}.flac", "text": "ab"} for name in clips] + [{"audio": "good.flac", "text": None}]
        for split in ("train", "held"):
            (tmp_path / f"{split}.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
            )
        source = {"path": str(tmp_path), "text_column": "text"}
        data = {"sources": [source], "evaluation": {"held": [source | {"split": "held"}]}}
        data |= {"max_seconds": 2.0, "batch_seconds": 4.0}
        metrics = finetune(make_recipe(corpus, tmp_path / "run", data=data), quiet=True)
        assert metrics["evaluation"]["held"]["examples"] == 3
        assert metrics["left_out"] == {
            "train": {"unlabelled": 1, "too_short": 2, "too_long": 1},
            "held": {"unlabelled": 1, "too_short": 1},
        }
        assert metrics["dropped"] == 4
        assert "too long" in metrics["dropped_because"]

    def test_impossible_utterances_are_dropped_and_counted(self, corpus, tmp_path, monkeypatch):
        read = finetuning.read_examples

        def with_a_long_text(*args, **kwargs):
            examples = read(*args, **kwargs)
            if kwargs["description"] == "reading training speech":
                object.__setattr__(examples[0], "text", "ab" * len(examples[0].waveform))
            return examples

        monkeypatch.setattr(finetuning, "read_examples", with_a_long_text)
        metrics = finetune(make_recipe(corpus, tmp_path / "run"), quiet=True)
        assert metrics["dropped"] == 1
        assert math.isfinite(metrics["evaluation"]["sentences"]["loss"])

    def test_more_speech_than_memory_is_streamed(self, corpus, tmp_path):
        first = finetune(make_recipe(corpus, tmp_path / "first"), quiet=True)
        small = {"memory_gb": 5e-4, "vocabulary": first["model"]}  # 18 of 30 s; the held-out 12 s fit
        lengths = sorted(len(e.waveform) for e in read_examples([AudioSource(corpus, text_column="text")]))
        small["max_seconds"] = lengths[-2] / 16_000  # one is longer
        metrics = finetune(make_recipe(corpus, tmp_path / "streamed", data=small), quiet=True)
        assert metrics["training_minutes"] is None
        assert metrics["left_out"]["train"].keys() == {"too_long"}
        assert metrics["dropped"] == metrics["left_out"]["train"]["too_long"] >= 1
        assert math.isfinite(metrics["evaluation"]["sentences"]["loss"])
        with pytest.raises(ValueError, match=r"give data\.vocabulary"):
            finetune(make_recipe(corpus, tmp_path / "without", data={"memory_gb": 5e-4}), quiet=True)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_bf16_and_gradient_checkpointing(self, corpus, tmp_path, checkpointing):
        training = {"mixed_precision": "bf16", "gradient_checkpointing": checkpointing}
        metrics = finetune(make_recipe(corpus, tmp_path / "run", training=training), quiet=True)
        assert math.isfinite(metrics["evaluation"]["sentences"]["loss"])
        assert all(tensor.dtype == torch.float32 for tensor in weights(metrics["model"]).values())

    def test_gradient_checkpointing_changes_nothing(self, corpus, tmp_path):
        """To the bit. A front end in training is left to other kernels then (tests/model/test_front_end.py)."""
        changes = {"freezing": {"freeze": "front_end"}}
        runs = [
            make_recipe(corpus, tmp_path / str(flag), training={"gradient_checkpointing": flag}, **changes)
            for flag in (False, True)
        ]
        first, second = (weights(finetune(run, quiet=True)["model"]) for run in runs)
        assert_equal(first, second)  # computed again by the same kernels

    def test_tensorboard(self, corpus, tmp_path):
        logging = {"trackers": ["tensorboard"], "every": 1}
        finetune(make_recipe(corpus, tmp_path / "run", logging=logging), quiet=True)
        events = list((tmp_path / "run").rglob("events.*"))
        assert events
        assert {path.parent for path in events} == {tmp_path / "run" / "logs"}


class TestStarts:
    """What is trained: weights that come from somewhere, or random ones in the same architecture."""

    @staticmethod
    def build(**settings):
        torch.manual_seed(0)
        return build_model(PretrainedSection(**settings), AutoModelForCTC, config_changes=HEAD)

    @pytest.mark.parametrize("choice", ["smallest", "default", "largest"])
    def test_subnet_of_a_supernet(self, supernet, choice):
        model = self.build(path=supernet, subnet=choice)
        loaded = LightHubertModel.from_pretrained(supernet)
        assert model.search_space is None
        assert_equal(
            model.lighthubert.state_dict(),
            loaded.extract_subnet(getattr(loaded.search_space, choice)()).state_dict(),
        )

    def test_without_a_subnet_it_is_the_default_one(self, supernet):
        assert_equal(self.build(path=supernet).state_dict(), self.build(path=supernet, subnet="default").state_dict())

    def test_plain_hubert(self, hubert):
        model = self.build(path=hubert)
        assert_equal(model.hubert.state_dict(), HubertModel.from_pretrained(hubert).state_dict())

    @pytest.mark.parametrize("kind", ["supernet", "hubert"])
    def test_from_scratch_is_the_same_architecture_with_other_weights(self, kind, request):
        path = request.getfixturevalue(kind)
        model, control = self.build(path=path), self.build(path=path, from_scratch=True)
        assert model.config.to_dict() == control.config.to_dict()
        name = f"{model.base_model_prefix}.encoder.layers.0.attention.q_proj.weight"
        assert not torch.equal(model.state_dict()[name], control.state_dict()[name])

    def test_a_pretrained_start_is_what_training_begins_with(self, supernet, corpus, tmp_path):
        recipe = make_recipe(
            corpus, tmp_path / "run", model={"path": supernet, "random_config": None}, optimizer={"lr": 1e-12}
        )
        trained = weights(finetune(recipe, quiet=True)["model"])
        start = self.build(path=supernet).state_dict()
        name = "lighthubert.feature_projection.projection.weight"
        assert (trained[name] - start[name]).abs().max() < 1e-10  # some steps of 1e-12

    def test_the_head_is_kept_with_the_vocabulary_it_was_trained_for(self, corpus, tmp_path):
        first = finetune(make_recipe(corpus, tmp_path / "first"), quiet=True)["model"]
        changes = {"model": {"path": first, "random_config": None}, "optimizer": {"lr": 1e-12}}
        kept = make_recipe(corpus, tmp_path / "kept", data={"vocabulary": first}, **changes)
        new = make_recipe(corpus, tmp_path / "new", **changes)
        head, kept_head, new_head = (
            weights(folder)["lm_head.weight"]
            for folder in (first, *(finetune(recipe, quiet=True)["model"] for recipe in (kept, new)))
        )
        assert (kept_head - head).abs().max() < 1e-10  # some steps of 1e-12
        assert not torch.allclose(new_head, head, atol=1e-3)

    def test_a_subnet_of_a_static_model_is_an_error(self, hubert):
        with pytest.raises(ValueError, match=r"is static; remove it"):
            self.build(path=hubert, subnet="smallest")

    def test_missing_weights_are_an_error(self, hubert, tmp_path):
        from safetensors.torch import load_file, save_file

        state = load_file(Path(hubert) / "model.safetensors")
        del state["encoder.layers.1.attention.q_proj.weight"]
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((Path(hubert) / "config.json").read_text())
        with pytest.raises(ValueError, match=r"lacks 1 weights .* encoder\.layers\.1\.attention\.q_proj\.weight"):
            self.build(path=str(tmp_path))


class TestFreezing:
    def test_a_frozen_encoder_stays_as_it_is_and_the_head_learns(self, supernet, corpus, tmp_path):
        model = {"path": supernet, "random_config": None}
        recipe = make_recipe(corpus, tmp_path / "run", model=model, freezing={"freeze": "encoder"})
        trained = weights(finetune(recipe, quiet=True)["model"])
        start = TestStarts.build(path=supernet).state_dict()
        encoder = [name for name in start if name.startswith("lighthubert.")]
        assert_equal({name: trained[name] for name in encoder}, {name: start[name] for name in encoder})
        assert trained["lm_head.bias"].abs().max() > 0  # it starts at zero

    def test_a_frozen_front_end_stays_and_the_layers_learn(self, supernet, corpus, tmp_path):
        model = {"path": supernet, "random_config": None}
        recipe = make_recipe(corpus, tmp_path / "run", model=model, freezing={"freeze": "front_end"})
        trained, start = (
            weights(finetune(recipe, quiet=True)["model"]),
            TestStarts.build(path=supernet).state_dict(),
        )
        changed = {name for name in trained if name in start and trained[name].shape == start[name].shape}
        changed = {name for name in changed if not torch.equal(trained[name], start[name])}
        assert not any(".feature_extractor." in name for name in changed)
        assert any(".layers.0." in name for name in changed)

    def test_layers_thaw_from_the_top(self, supernet):
        model = TestStarts.build(path=supernet, subnet="smallest")
        model.freeze_feature_encoder()
        thawing = Thawing(FreezingSection(head_only_steps=3, thaw_layers_every=2))

        def trained(step):
            class State:
                global_step = step

            if step == 0:
                thawing.on_train_begin(None, State, None, model=model)
            thawing.on_step_begin(None, State, None)
            return {
                part
                for part in (
                    "encoder.layers.0.",
                    "encoder.layers.1.",
                    "feature_projection",
                    "feature_extractor",
                    "lm_head",
                )
                if all(p.requires_grad for name, p in model.named_parameters() if part in name)
            }

        head = {"lm_head"}
        assert model.config.num_hidden_layers == 2
        assert [trained(step) for step in range(3)] == [head] * 3
        top, bottom = "encoder.layers.1.", "encoder.layers.0."
        assert [trained(step) for step in (3, 4)] == [head | {top}] * 2
        assert [trained(step) for step in (5, 6)] == [head | {top, bottom}] * 2
        assert trained(7) == head | {top, bottom, "feature_projection"}

    def test_the_head_alone_learns_at_first(self, supernet, corpus, tmp_path):
        def run(steps):
            recipe = make_recipe(
                corpus,
                tmp_path / str(steps),
                model={"path": supernet, "random_config": None},
                freezing={"freeze": "none", "head_only_steps": 2},
                training={"steps": steps},
            )
            return weights(finetune(recipe, quiet=True)["model"])

        name = "lighthubert.encoder.layers.0.layer_norm.bias"
        start = TestStarts.build(path=supernet).state_dict()[name]
        assert torch.equal(run(2)[name], start)
        assert not torch.equal(run(3)[name], start)


def test_the_head_can_have_a_rate_of_its_own(supernet, corpus, tmp_path):
    def run(name, **training):
        model = {"path": supernet, "random_config": None}
        recipe = make_recipe(corpus, tmp_path / name, model=model, optimizer={"lr": 1e-12}, training=training)
        return weights(finetune(recipe, quiet=True)["model"])

    slow, fast = run("slow"), run("fast", head_lr=1e-2)
    learnt = {name for name in slow if (slow[name] - fast[name]).abs().max() > 1e-6}
    assert learnt == {"lm_head.weight", "lm_head.bias"}


class Killed(BaseException):
    """As by the operating system: nothing cleans up after it."""


class TestResume:
    @staticmethod
    def recipe(corpus, output, **changes):
        return make_recipe(corpus, output, training={"steps": 6}, checkpoint={"every": 2, "keep": 2}, **changes)

    @staticmethod
    def run_until(step, recipe, **options):
        """Run `recipe` until it is killed in `step`."""
        train = CtcTrainer.training_step

        def training_step(self, *args, **kwargs):
            if self.state.global_step == step:
                raise Killed
            return train(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CtcTrainer, "training_step", training_step)
            with pytest.raises(Killed):
                finetune(recipe, quiet=True, **options)

    @pytest.fixture(scope="class")
    def whole(self, corpus, tmp_path_factory):
        """The metrics of a run that nothing interrupts."""
        return finetune(self.recipe(corpus, tmp_path_factory.mktemp("whole") / "run"), quiet=True)

    @pytest.fixture(scope="class")
    def killed(self, corpus, tmp_path_factory):
        folder = tmp_path_factory.mktemp("killed") / "run"
        self.run_until(5, self.recipe(corpus, folder))
        return folder

    @pytest.fixture
    def killed_in_step_5(self, killed, tmp_path):
        """A run of the recipe with checkpoints after steps 2 and 4."""
        return Path(shutil.copytree(killed, tmp_path / "run"))

    @pytest.mark.parametrize("streamed", [False, True])
    def test_two_interruptions_change_nothing(self, corpus, whole, tmp_path, streamed):
        data = {}
        if streamed:
            data = {"memory_gb": 3e-4, "vocabulary": whole["model"]}
            whole = finetune(self.recipe(corpus, tmp_path / "whole", data=data), quiet=True)
        recipe = self.recipe(corpus, tmp_path / "broken", data=data)
        self.run_until(3, recipe)
        self.run_until(5, recipe)
        resumed = finetune(recipe, quiet=True)
        assert_equal(weights(whole["model"]), weights(resumed["model"]))
        assert resumed["evaluation"] == whole["evaluation"]
        assert resumed["steps"] == 6

    def test_a_checkpoint_that_was_not_finished_is_passed_over(self, corpus, killed_in_step_5):
        checkpoints = killed_in_step_5 / "checkpoints"
        (checkpoints / "step-00000006").mkdir()
        (checkpoints / "step-00000006" / "model.safetensors").write_bytes(b"half")
        assert latest_checkpoint(checkpoints).name == "step-00000004"
        assert finetune(self.recipe(corpus, killed_in_step_5), quiet=True)["steps"] == 6

    @pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
    def test_a_damaged_checkpoint_is_named_and_the_one_before_used(self, corpus, killed_in_step_5, caplog, name):
        file = killed_in_step_5 / "checkpoints" / "step-00000004" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content) if name != "scheduler.pt" else file.unlink()
        with caplog.at_level("WARNING"):
            self.run_until(2, self.recipe(corpus, killed_in_step_5))
        assert any("step-00000004" in line and name in line and "step-00000002" in line for line in caplog.messages)

    def test_another_recipe_is_refused_unless_it_starts_over(self, corpus, killed_in_step_5):
        other = self.recipe(corpus, killed_in_step_5, seed=1)
        with pytest.raises(ValueError, match=r"seed=0, the recipe says 1; .*--overwrite"):
            finetune(other, quiet=True)
        assert finetune(other, overwrite=True, quiet=True)["steps"] == 6

    def test_finished_work_is_not_done_again(self, corpus, tmp_path, monkeypatch):
        recipe = make_recipe(corpus, tmp_path / "run")
        metrics = finetune(recipe, quiet=True)
        monkeypatch.setattr(finetuning, "_read_speech", None)
        assert finetune(recipe, quiet=True) == metrics
        (tmp_path / "run").rename(tmp_path / "moved")
        moved = make_recipe(corpus, tmp_path / "moved")
        assert finetune(moved, quiet=True) == metrics | {"model": str(tmp_path / "moved" / "model")}
        file = tmp_path / "moved" / "metrics.json"
        text = file.read_text()
        for damaged in (
            "",
            "{",
            "[]",
            "{}",
            text[: len(text) // 2],
            text.replace('"steps"', '"stps"'),
            "\0" * 99,
            "[" * 9999,
        ):
            file.write_text(damaged)
            with pytest.raises(ValueError, match=r"moved/metrics\.json .*start over with --overwrite") as error:
                finetune(moved, quiet=True)
            assert "\n" not in str(error.value)
        file.unlink()
        with pytest.raises(FileNotFoundError, match=r"moved has no metrics\.json; start over with --overwrite"):
            finetune(moved, quiet=True)
        assert (tmp_path / "moved" / "model" / "model.safetensors").is_file()

    def test_a_run_killed_before_its_model_was_saved_trains_no_further(self, corpus, tmp_path):
        recipe = self.recipe(corpus, tmp_path / "run")
        metrics = finetune(recipe, quiet=True)
        trained = weights(metrics["model"])
        for _ in range(2):
            shutil.rmtree(metrics["model"])
            (tmp_path / "run" / "metrics.json").unlink()
            again = finetune(recipe, quiet=True)
            assert again | {"seconds": 0} == metrics | {"seconds": 0}
            assert_equal(trained, weights(metrics["model"]))

    def test_a_damaged_card_of_the_encoder_ends_it_before_anything_is_read(self, hubert, tmp_path, monkeypatch):
        shutil.copytree(hubert, tmp_path / "encoder")
        (tmp_path / "encoder" / "model_card.json").write_text('{"loss": "none"}')
        monkeypatch.setattr(finetuning, "_read_speech", None)
        recipe = make_recipe(
            "nowhere", tmp_path / "run", model={"path": str(tmp_path / "encoder"), "random_config": None}
        )
        with pytest.raises(ValueError, match=r"encoder/model_card\.json: loss must be a finite number"):
            finetune(recipe, quiet=True)

    @pytest.fixture(scope="class")
    def five_steps(self, corpus, tmp_path_factory):
        return finetune(
            make_recipe(corpus, tmp_path_factory.mktemp("five") / "run", training={"steps": 5}), quiet=True
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_saves_and_changes_nothing(self, corpus, five_steps, tmp_path, monkeypatch, number):
        """Without `checkpoint` in the recipe, too."""
        recipe = make_recipe(corpus, tmp_path / "run", training={"steps": 5})
        step = CtcTrainer.training_step

        def signalled_in_step_2(self, *args, **kwargs):
            if self.state.global_step == 2:
                signal.raise_signal(number)
            return step(self, *args, **kwargs)

        died = []
        with monkeypatch.context() as patch:
            patch.setattr(CtcTrainer, "training_step", signalled_in_step_2)
            if number == signal.SIGTERM:  # heard by whoever sent it; here by a handler that lets the process live
                before = signal.signal(signal.SIGTERM, lambda *_: died.append(1))
            try:
                with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as end:
                    finetune(recipe, quiet=True)
            finally:
                if number == signal.SIGTERM:
                    signal.signal(signal.SIGTERM, before)
        checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
        if number == signal.SIGINT:
            assert f"after step 3 of 5, saved in {checkpoint}; the same command goes on" in str(end.value)
        else:
            assert died
        assert latest_checkpoint(checkpoint.parent) == checkpoint
        resumed = finetune(recipe, quiet=True)
        assert_equal(weights(five_steps["model"]), weights(resumed["model"]))


class TestNotFinite:
    """Gradients that are NaN or infinite, as a learning rate or a recording that is far too large makes them."""

    @pytest.fixture
    def poison(self, monkeypatch):
        """`poison(steps)`: the gradients of these steps become infinite or NaN, in one weight."""

        def make(steps):
            train = CtcTrainer.training_step

            def training_step(self, model, *args, **kwargs):
                loss = train(self, model, *args, **kwargs)
                if self.state.global_step in steps:
                    gradient = next(p.grad for p in reversed(list(model.parameters())) if p.grad is not None)
                    gradient.view(-1)[0] = float("nan" if self.state.global_step % 2 else "inf")
                return loss

            monkeypatch.setattr(CtcTrainer, "training_step", training_step)

        return make

    def test_such_a_step_is_skipped_and_counted_across_interruptions(self, corpus, tmp_path, poison):
        poison({1, 2, 4})
        whole = finetune(TestResume.recipe(corpus, tmp_path / "whole"), quiet=True)
        assert whole["skipped_steps"] == 3 and whole["steps"] == 6
        assert all(tensor.isfinite().all() for tensor in weights(whole["model"]).values())
        recipe = TestResume.recipe(corpus, tmp_path / "broken")
        TestResume.run_until(5, recipe)
        resumed = finetune(recipe, quiet=True)
        assert resumed["skipped_steps"] == 3
        assert_equal(weights(whole["model"]), weights(resumed["model"]))

    def test_it_changes_neither_weights_nor_moments(self):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, fused=True)
        steps, state = NonFiniteSteps(5), SimpleNamespace(max_steps=10, global_step=0)

        def step(scale):
            (model(torch.randn(4, 3)).sum() * scale).backward()
            steps.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
            optimizer.step()
            optimizer.zero_grad()
            return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))

        before = step(1.0)
        after = step(float("nan"))
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert (steps.skipped, steps.in_a_row) == (1, 1)
        assert not torch.equal(step(1.0)[0]["weight"], before[0]["weight"]) and steps.in_a_row == 0

    @pytest.mark.parametrize(("limit", "ended_at"), [(2, 4), (100, 6)])
    def test_too_many_of_them_end_the_run_without_a_model(self, corpus, tmp_path, poison, limit, ended_at):
        poison({2, 3} if limit == 2 else range(6))
        training = {"steps": 6, "max_skipped_in_a_row": limit}
        with pytest.raises(ValueError, match=rf"{limit if limit == 2 else 6} steps in a row .*up to step {ended_at}"):
            finetune(make_recipe(corpus, tmp_path / "run", training=training), quiet=True)
        assert not (tmp_path / "run" / "model").exists()

    def test_weights_that_are_not_finite_are_no_result(self, corpus, tmp_path, monkeypatch):
        def end(self, args, state, control, model=None, **kwargs):
            model.lm_head.bias.data[0] = float("nan")

        monkeypatch.setattr(NonFiniteSteps, "on_train_end", end)
        with pytest.raises(ValueError, match=r"fine-tuned model has NaN .*lm_head\.bias"):
            finetune(make_recipe(corpus, tmp_path / "run"), quiet=True)
        assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "metrics.json").exists()


def test_early_stopping_stops_and_keeps_the_best(corpus, tmp_path, monkeypatch):
    evaluate, rates = CtcTrainer.evaluation_loop, iter([0.5, 0.3, 0.4, 0.3])

    def evaluation_loop(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        if self.is_in_train:
            output.metrics["eval_cer"] = next(rates)
        return output

    monkeypatch.setattr(CtcTrainer, "evaluation_loop", evaluation_loop)
    training = {"steps": 20, "evaluate_every": 2, "early_stopping_patience": 2}
    metrics = finetune(make_recipe(corpus, tmp_path / "run", training=training), quiet=True)
    assert metrics["steps"] == 8  # the second evaluation is the best, two more are no better
    checkpoints = tmp_path / "run" / "checkpoints"
    assert_equal(weights(metrics["model"]), weights(checkpoints / "step-00000004"))
    assert len(list(checkpoints.iterdir())) <= 2


def test_a_resumed_run_goes_on_counting_scores_that_are_no_better(corpus, tmp_path, monkeypatch):
    evaluate, rates = CtcTrainer.evaluation_loop, iter([0.3, 0.4, 0.4])

    def evaluation_loop(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        if self.is_in_train:
            output.metrics["eval_cer"] = next(rates)
        return output

    monkeypatch.setattr(CtcTrainer, "evaluation_loop", evaluation_loop)
    training = {"steps": 20, "evaluate_every": 2, "early_stopping_patience": 2}
    recipe = make_recipe(corpus, tmp_path / "run", training=training, checkpoint={"every": 2, "keep": 3})
    TestResume.run_until(5, recipe)
    for _ in range(2):  # the second time as if it had been killed before the model was saved
        metrics = finetune(recipe, quiet=True)
        assert metrics["steps"] == 6
        assert_equal(weights(metrics["model"]), weights(tmp_path / "run" / "checkpoints" / "step-00000002"))
        shutil.rmtree(metrics["model"])


def test_adapters_of_low_rank_are_merged(supernet, corpus, tmp_path):
    pytest.importorskip("peft")
    recipe = make_recipe(
        corpus,
        tmp_path / "run",
        model={"path": supernet, "random_config": None, "subnet": "largest"},
        lora={"rank": 2, "alpha": 64},
        optimizer={"lr": 1e-2},
        training={"steps": 4},
    )
    metrics = finetune(recipe, quiet=True)
    trained = weights(metrics["model"])
    start = TestStarts.build(path=supernet, subnet="largest").state_dict()
    query = "lighthubert.encoder.layers.0.attention.q_proj.weight"
    assert torch.linalg.matrix_rank(trained[query] - start[query], atol=1e-5) == 2
    below = "lighthubert.feature_projection.projection.weight"
    assert torch.equal(trained[below], start[below])
    assert metrics["parameters"] == sum(tensor.numel() for tensor in trained.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"path": "x"}}, "exactly one of model.path and model.random_config"),
        ({"data": {"synthetic_minutes": 1}}, "exactly one of data.sources and data.synthetic_minutes"),
        ({"data": {"batch_seconds": 5.0}}, "must hold at least one utterance"),
        ({"freezing": {"freeze": "encoder", "head_only_steps": 5}}, "never thaws"),
        ({"lora": {}, "freezing": {"head_only_steps": 5}}, "remove freezing.head_only_steps"),
        ({"training": {"early_stopping_patience": 1}}, "set training.evaluate_every"),
        ({"decoding": {"language_model": "x"}}, "needs decoding.kind=beam"),
        ({"training": {"stepps": 1}}, "Extra inputs are not permitted"),
        (
            {"training": {"evaluate_every": 4, "early_stopping_patience": 1}, "checkpoint": {"every": 6}},
            "must be a multiple",
        ),
    ],
)
def test_recipes_that_make_no_sense(corpus, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(corpus, tmp_path, **changes)


def test_sources_without_transcripts(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"set text_column"):
        finetune(make_recipe(corpus, tmp_path, data={"sources": [{"path": corpus}]}), quiet=True)


def test_the_script_of_the_guide_runs(corpus, supernet, tmp_path, monkeypatch, capsys):
    guide = (Path(__file__).parents[3] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    script = guide.split("```python\n")[1].split("```")[0]
    LightHubertModel.from_pretrained(supernet).extract_subnet().save_pretrained(tmp_path / "subnet")
    for name, value in {
        '"CORPUS"': repr(corpus),
        '"SUBNET"': repr(str(tmp_path / "subnet")),
        "max_steps=1000": "max_steps=1, use_cpu=True",
    }.items():
        assert name in script
        script = script.replace(name, value)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "finetuning.md", "exec"), {})
    assert "'cer'" in capsys.readouterr().out
    assert pipeline("automatic-speech-recognition", "recogniser").type == "ctc"


def test_the_vocabulary_must_fit_the_transcripts_in_memory_and_in_a_stream(corpus, tmp_path, caplog):
    build_processor(characters(["ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])).save_pretrained(tmp_path / "capitals")
    data = {"vocabulary": str(tmp_path / "capitals")}
    for name, memory in (("kept", 4.0), ("streamed", 6e-4)):
        with pytest.raises(ValueError, match=r"of the characters of the training tr.*data.transcripts.case=upper"):
            finetune(make_recipe(corpus, tmp_path / name, data=data | {"memory_gb": memory}), quiet=True)
    cleaned = data | {"transcripts": {"case": "upper", "drop": ".,!?;:-"}}
    metrics = finetune(make_recipe(corpus, tmp_path / "cleaned", data=cleaned), quiet=True)
    assert metrics["vocabulary"]["unknown_share"] == 0
    assert sum(metrics["vocabulary"]["counts"].values()) > 100
    assert metrics["vocabulary"]["size"] == 27


def test_a_part_of_the_data_is_held_out_in_pieces_of_words(corpus, tmp_path):
    data = {"evaluation": {}, "held_out_share": 0.25, "units": "bpe", "vocabulary_size": 40}
    recipe = make_recipe(corpus, tmp_path / "run", data=data)
    metrics = finetune(recipe, quiet=True)
    everything = read_examples([AudioSource(corpus, text_column="text")], progress=False)
    held_out = metrics["evaluation"]["held_out"]["examples"]
    assert held_out == round(len(everything) / 4)
    seconds = sum(len(example.waveform) for example in everything) / 16000
    assert metrics["training_minutes"] < seconds / 60
    assert metrics["vocabulary"]["size"] == 40
    assert pipeline("automatic-speech-recognition", metrics["model"]).type == "ctc"
    first, again = (finetuning._held_out(everything, 0.25, seed)[1] for seed in (0, 0))
    assert [e.id for e in first] == [e.id for e in again]


def test_the_final_scoring_says_nothing_of_early_stopping(corpus, tmp_path, caplog):
    training = {"steps": 2, "evaluate_every": 1, "early_stopping_patience": 2}
    transformers_logging.enable_propagation()
    try:
        finetune(make_recipe(corpus, tmp_path / "run", training=training), quiet=True)
    finally:
        transformers_logging.disable_propagation()
    assert "early stopping" not in caplog.text
