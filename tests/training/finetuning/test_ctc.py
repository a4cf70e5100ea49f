"""Error rates that padding does not change, and training on two processes."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertForCTC, TrainingArguments

from lighthubert_hf import LightHubertConfig, LightHubertForCTC
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.finetuning.ctc import CtcCollator, CtcTrainer, error_rates
from lighthubert_hf.training.finetuning.decoding import transcribe
from lighthubert_hf.training.finetuning.processors import build_processor, characters
from lighthubert_hf.training.recipes.sections import ScheduleSection
from lighthubert_hf.training.synthetic.speech import synthesise_corpus

TEXTS = ("a bird sings", "two dogs", "water", "the red house never sleeps", "a b")
PROCESSOR = build_processor(characters(TEXTS))


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4_000, 40_000, len(TEXTS))
    return [
        SpeechExample(str(i), rng.standard_normal(length).astype(np.float16), text)
        for i, (length, text) in enumerate(zip(lengths, TEXTS, strict=True))
    ]


def make_model(kind, norm="layer"):
    torch.manual_seed(0)
    config = LightHubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=16,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm if kind == "lighthubert" else "layer",
        vocab_size=len(PROCESSOR.tokenizer),
        pad_token_id=PROCESSOR.tokenizer.pad_token_id,
    )
    model = LightHubertForCTC(config)
    torch.nn.init.normal_(model.lm_head.weight, std=2.0)  # so that it says something
    if kind == "lighthubert":
        return model
    plain = model.to_hubert()
    if norm == "group":
        plain = HubertForCTC(type(plain.config).from_dict(plain.config.to_dict() | {"feat_extract_norm": "group"}))
        plain.lm_head.load_state_dict(model.lm_head.state_dict())
    return plain


def make_trainer(model, folder, eval_batch_seconds):
    return CtcTrainer(
        model=model,
        args=TrainingArguments(
            str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, report_to=[], label_names=["labels"]
        ),
        batches=[],
        collate=CtcCollator(PROCESSOR, model.config),
        processor=PROCESSOR,
        schedule=ScheduleSection(),
        eval_batch_seconds=eval_batch_seconds,
    )


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("lighthubert", "layer"), ("lighthubert", "group"), ("hubert", "layer"), ("hubert", "group")],
)
def test_rates_and_loss_do_not_depend_on_the_batch(kind, norm, examples, tmp_path):
    model = make_model(kind, norm)
    results = {}
    for seconds in (0.001, 1000.0):
        trainer = make_trainer(model, tmp_path, seconds)
        assert len(trainer.get_eval_dataloader(examples)) == (
            1 if seconds > 1 and (kind, norm) != ("hubert", "group") else len(examples)
        )
        output = trainer.evaluate(examples)
        results[seconds] = [output[f"eval_{name}"] for name in ("wer", "cer", "loss")]
    # The loss is a mean of logarithms; random models of this size make less than 1e-5 of rounding.
    assert results[0.001] == pytest.approx(results[1000.0], rel=1e-4)
    assert results[1000.0][1] > 0.2


def test_transcriptions_stand_in_the_order_of_the_examples(examples):
    model = make_model("lighthubert").eval()
    together = transcribe(model, PROCESSOR, examples)
    assert together == [transcribe(model, PROCESSOR, [example])[0] for example in examples]
    assert len(set(together)) > 1


def test_error_rates_are_those_of_the_whole_set():
    rates = error_rates(["a bird", "two dogs run"], ["a bird sings", "two dogs"])
    assert rates["wer"] == pytest.approx(2 / 5)


@pytest.mark.slow
def test_two_processes_train_the_same_model_and_agree_on_the_scores(tmp_path):
    """Both ranks hold bit-equal weights after training, and the scores are those one process finds for that model."""
    synthesise_corpus(tmp_path / "corpus", minutes=0.5, held_out_minutes=0.2, num_shards=2)
    program = f"""
        import json, sys, torch
        torch.set_num_threads(1)
        import torch.distributed as dist
        from lighthubert_hf.training.finetuning import run as finetuning
        from lighthubert_hf.training.finetuning.recipe import CtcRecipe
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from tests.training.finetuning.test_run import make_recipe
        trainers = []
        make = finetuning._trainer
        finetuning._trainer = lambda *args: trainers.append(make(*args)) or trainers[-1]
        freezing = {{"freeze": "none", "head_only_steps": 1, "thaw_layers_every": 1}}
        recipe = make_recipe({str(tmp_path / "corpus")!r}, {str(tmp_path / "run")!r}, freezing=freezing,
                             training={{"steps": 4, "accumulation": 2}}, checkpoint={{"every": 2}})
        metrics = finetuning.finetune(recipe, quiet=True)
        assert dist.get_world_size() == 2
        total = torch.stack([p.double().sum() for p in trainers[0].model.parameters()])
        totals = [torch.empty_like(total) for _ in range(2)]
        dist.all_gather(totals, total.detach())
        assert torch.equal(*totals), totals
        if dist.get_rank() == 0:
            print(json.dumps(metrics))
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(tmp_path / "program.py")], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads(done.stdout.strip().splitlines()[-1])
    assert metrics["steps"] == 4

    from lighthubert_hf.training.audio.examples import read_examples
    from lighthubert_hf.training.audio.sources import AudioSource

    source = AudioSource(str(tmp_path / "corpus"), "test_sentences", text_column="text")
    examples = read_examples([source], progress=False)
    model = LightHubertForCTC.from_pretrained(metrics["model"])
    from transformers import Wav2Vec2Processor

    processor = Wav2Vec2Processor.from_pretrained(metrics["model"])
    texts = transcribe(model, processor, examples)
    assert metrics["evaluation"]["sentences"]["cer"] == pytest.approx(
        error_rates(texts, [example.text for example in examples])["cer"]
    )
