"""`lighthubert transcribe`, called in this process."""

import io
import json
import re
import sys

import numpy as np
import pytest
import soundfile
import torch

from lighthubert_hf import LightHubertForCTC, LightHubertModel, Subnet
from lighthubert_hf.cli import main
from lighthubert_hf.training.finetuning.processors import build_processor, characters

SUBNET = Subnet(48, (1, 3), (96, 72))
PROCESSOR = build_processor(characters(["abcdefghi"]))


@pytest.fixture(scope="module")
def recogniser(make_model, tmp_path_factory):
    """A folder with a recogniser that says much, of 12 tokens, with a window in every layer."""
    folder = tmp_path_factory.mktemp("recogniser")
    model = make_model(LightHubertForCTC, attention_window=4, pad_token_id=0).extract_subnet(SUBNET)
    with torch.no_grad():
        model.lm_head.weight[[2, 6]] = model.lm_head.weight[[6, 2]]  # so that words end now and then
        model.lm_head.bias[[2, 6]] = model.lm_head.bias[[6, 2]]
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audio():
    return (0.1 * np.random.default_rng(0).standard_normal(40_000) + 0.02).astype(np.float32)


@pytest.fixture(scope="module")
def text(recogniser, audio):
    """As one forward says it."""
    inputs = PROCESSOR(audio, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        ids = LightHubertForCTC.from_pretrained(recogniser).eval()(inputs.input_values).logits.argmax(-1)[0]
    text = " ".join(PROCESSOR.tokenizer.decode(ids, skip_special_tokens=False).split())
    assert len(text.split()) > 5
    return text


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`call(*arguments, stdin=b"")`: status, standard output and error of `lighthubert transcribe`, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["lighthubert", "transcribe", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        lines = [line for line in re.split(r"[\r\n]+", said.err) if line and "it/s]" not in line]  # no progress bars
        return end.value.code or 0, said.out, "".join(f"{line}\n" for line in lines)

    return run


def test_a_file_in_every_format(recogniser, audio, text, call):
    soundfile.write("a.flac", audio, 16_000, subtype="PCM_24")
    plain = call(recogniser, "a.flac", "--chunk", 0.3)
    assert plain[0] == 0
    assert plain[1].split() == text.split()
    assert call(recogniser, "a.flac")[1] == plain[1]  # however long the chunks are
    lines = [json.loads(line) for line in call(recogniser, "a.flac", "--format", "json")[1].splitlines()]
    assert [line["text"] for line in lines] == plain[1].splitlines()
    times = [time for line in lines for word in line["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert times[-1] <= 2.5
    assert call(recogniser, "a.flac", "--format", "vtt")[1].startswith("WEBVTT\n\n00:00:00.")
    assert call(recogniser, "a.flac", "--format", "srt")[1].startswith("1\n00:00:00,")


def test_files_beside_broken_ones(recogniser, audio, text, call, tmp_path):
    """What can be read is written, what cannot is named; again, nothing is written twice."""
    soundfile.write("a.wav", audio, 16_000, subtype="FLOAT")
    soundfile.write("b.wav", np.zeros((0, 2)), 8_000)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    files = ["a.wav", "b.wav", "c.wav", "nowhere.wav"]
    status, out, err = call(recogniser, *files, "--format", "srt", "--output", "texts", "--json")
    found = json.loads(out)
    assert status == 2
    assert "3 of 4 files could not be transcribed (b.wav: b.wav holds no audio; c.wav: " in err
    assert found["files"] == [
        {"file": "a.wav", "text": text, "words": len(text.split()), "seconds": 2.5, "output": "texts/a.srt"}
    ]
    assert [one["file"] for one in found["failed"]] == files[1:]
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["a.srt"]
    before = (tmp_path / "texts" / "a.srt").read_text()
    (tmp_path / "texts" / "a.srt").write_text("mine")
    status, out, _ = call(recogniser, "a.wav", "--format", "srt", "--output", "texts")
    assert (status, out) == (0, "0 transcripts written to texts, 1 were there\n")
    call(recogniser, "a.wav", "--format", "srt", "--output", "texts", "--overwrite")
    assert (tmp_path / "texts" / "a.srt").read_text() == before
    assert call(recogniser, "a.wav", "a.wav")[1] == f"a.wav\t{text}\n"


def test_raw_samples(recogniser, audio, call, monkeypatch):
    """Words as they come; the mean and variance so far, not those of the whole."""
    status, out, err = call(recogniser, "-", "--encoding", "f32le", "--chunk", 0.1, stdin=audio.tobytes())
    assert status == 0
    assert err == "words come up to 0.33 s, and the time to compute, after they are said\n"
    summary = json.loads(
        call(recogniser, "-", "--encoding", "f32le", "--chunk", 0.1, "--json", stdin=audio.tobytes())[1]
    )
    assert out.split() == summary["text"].split()
    assert [line["text"] for line in summary["lines"]] == out.splitlines()
    lines = call(recogniser, "-", "--encoding", "f32le", "--chunk", 0.1, "--format", "json", stdin=audio.tobytes())[1]
    assert [json.loads(line) for line in lines.splitlines()] == summary["lines"]
    whole = np.round(audio * 32768).astype("<i2")
    long = call(recogniser, "-", "--chunk", 10, stdin=whole.tobytes() + b"\0")[1]  # a byte too many
    assert (
        long.split() == call(recogniser, "-", "--chunk", 10, "--encoding", "f32le", stdin=audio.tobytes())[1].split()
    )


def test_raw_samples_of_another_rate(recogniser, call):
    tone = (0.1 * np.sin(np.arange(8_000) / 7)).astype("<f4")
    (found,) = [
        json.loads(call(recogniser, "-", "--rate", 8_000, "--encoding", "f32le", "--json", stdin=bytes(tone))[1])
    ]
    assert 0.95 <= found["seconds"] <= 1.0


def test_words_are_written_before_the_stream_ends(recogniser, audio, text):
    """All but those of the look-ahead."""
    from lighthubert_hf.training.transcription import run
    from lighthubert_hf.training.transcription.recogniser import load_recogniser

    said = []

    class Microphone(io.BytesIO):
        def read1(self, size):
            data = self.read(2_000)
            if not data:
                said.append("the end")
            return data

    model, processor = load_recogniser(str(recogniser))
    run.transcribe_raw(
        model, processor, Microphone(audio.tobytes()), encoding="f32le", context=run.Context(0.1), write=said.append
    )
    words = sum(len(part.split()) for part in said[: said.index("the end")])
    assert words > 0.6 * len(text.split())


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["a.wav", "--format", "doc"], None, "--format must be one of txt, srt, vtt, json, got 'doc'"),
        (["a.wav", "--rate", "8000"], None, "--rate is of raw samples on standard input"),
        (["a.wav", "-"], None, "standard input (-) stands alone"),
        (["a.wav", "b.wav", "--format", "srt"], None, "several transcripts in srt need files of their own"),
        (["a/x.wav", "b/x.flac", "--output", "o"], None, "a/x.wav and b/x.flac would both be written to o/x.txt"),
        (["-", "--output", "o"], b"", "leave out --output"),
        (["-", "--rate", "7"], b"", "--rate must be between 1000 and 768000 samples per second, got 7"),
        (["-"], b"RIFF....WAVE", "standard input is a WAV file, not raw samples; give the file's name instead of -"),
        (["-", "--encoding", "f32le"], np.full(9, 1e9, "<f4").tobytes(), "samples beyond ±1"),
        (["-", "--chunk", "0.01"], b"", "chunk_seconds must be at least one frame (0.02 s), got 0.01"),
    ],
)
def test_what_is_refused(recogniser, call, arguments, stdin, message):
    status, out, err = call(recogniser, *arguments, stdin=stdin)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 2


def test_a_plain_hubert_of_the_same_weights_says_the_same(recogniser, audio, call, tmp_path):
    LightHubertForCTC.from_pretrained(recogniser, attention_window=None).to_hubert().save_pretrained(
        tmp_path / "plain"
    )
    PROCESSOR.save_pretrained(tmp_path / "plain")
    LightHubertForCTC.from_pretrained(recogniser, attention_window=None).save_pretrained(tmp_path / "own")
    PROCESSOR.save_pretrained(tmp_path / "own")
    soundfile.write("a.wav", audio, 16_000, subtype="FLOAT")
    said = [call(name, "a.wav", "--chunk", 1, "--left", 0.5, "--right", 0.2)[:2] for name in ("plain", "own")]
    assert said[0] == said[1]
    assert said[0][1]


def test_models_that_put_out_no_text(recogniser, make_model, call, tmp_path):
    make_model(LightHubertModel).extract_subnet(SUBNET).save_pretrained(tmp_path / "encoder")
    status, _, err = call("encoder", "a.wav")
    assert (status, err) == (
        2,
        "lighthubert: encoder is a LightHubertModel, without the CTC head that puts out text; train one with "
        "`lighthubert finetune`\n",
    )
    LightHubertForCTC.from_pretrained(recogniser).save_pretrained(tmp_path / "silent")
    assert "silent has no vocabulary and feature extractor beside its weights" in call("silent", "a.wav")[2]
    build_processor(characters(["ab"])).save_pretrained(tmp_path / "silent")
    assert "the vocabulary of silent has 5 tokens, its head 12" in call("silent", "a.wav")[2]
