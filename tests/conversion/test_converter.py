"""Where results go: nothing is replaced, nothing half-written, and what it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertModel
from lighthubert_hf.conversion import ConversionError, convert, converter
from lighthubert_hf.conversion.checkpoints.writing import file_written_beside, write_safetensors

from .. import processes
from ..golden import golden_description, original_checkpoint, original_shapes

DESCRIPTION = golden_description()


def run(program: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("occupied_by", ["a file", "a folder with a file", "an earlier supernet", "a dangling link"])
def test_output_in_use_is_left_alone(occupied_by, save_original, small_space, tmp_path):
    path, output = save_original(), tmp_path / "output"
    if occupied_by == "a file":
        output.write_text("mine")
    elif occupied_by == "a folder with a file":
        output.mkdir()
        (output / "mine").write_text("mine")
    elif occupied_by == "an earlier supernet":
        convert(path, output, search_space=small_space, verify=False)
    else:
        output.symlink_to(tmp_path / "nowhere")
    before = [(p.name, p.is_file() and p.read_bytes()) for p in sorted(tmp_path.rglob("*"))]
    for options in ({"search_space": small_space}, {"to_original": True}):
        with pytest.raises(ConversionError, match="output exists; choose another place"):
            convert(path, output, **options)
    assert [(p.name, p.is_file() and p.read_bytes()) for p in sorted(tmp_path.rglob("*"))] == before


def test_output_may_be_an_empty_or_a_new_nested_folder(save_original, small_space, tmp_path):
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "empty", tmp_path / "new" / "nested"):
        convert(save_original(), output, search_space=small_space, verify=False)
        assert (output / "model.safetensors").is_file()


def test_files_need_a_free_name_in_an_existing_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="is a folder"), file_written_beside(tmp_path / "empty"):
        pass
    with pytest.raises(FileNotFoundError, match="there is no folder"), file_written_beside(tmp_path / "no" / "x.pt"):
        pass
    with file_written_beside(tmp_path / "x.pt") as new:
        new.write_text("x")
        assert not (tmp_path / "x.pt").exists()
    assert (tmp_path / "x.pt").read_text() == "x"
    with pytest.raises(ConversionError, match="exists"), file_written_beside(tmp_path / "x.pt"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["empty", "x.pt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_interruption_leaves_nothing(error, save_original, small_space, tmp_path, monkeypatch):
    path = save_original()

    def interrupt(*args):
        raise error

    monkeypatch.setattr(converter, "_verify_supernet", interrupt)
    before = os.listdir(tmp_path)
    with pytest.raises(error):
        convert(path, tmp_path / "supernet", search_space=small_space)
    assert os.listdir(tmp_path) == before


def test_verification_that_fails_leaves_nothing(save_original, small_space, tmp_path, monkeypatch):
    """A layer's two FFN biases exchanged with another's on the way: every shape is right, the function is not."""
    path = save_original()
    original = converter.layout_original

    def wrong(*args):
        layout, cfg = original(*args)
        first, second = (f"encoder.layers.{i}.feed_forward.intermediate_dense.bias" for i in (0, 1))
        layout.names[first], layout.names[second] = layout.names[second], layout.names[first]
        return layout, cfg

    monkeypatch.setattr(converter, "layout_original", wrong)
    before = os.listdir(tmp_path)
    with pytest.raises(ConversionError, match=r"differs from its source by .* nothing was written"):
        convert(path, tmp_path / "supernet", search_space=small_space)
    assert os.listdir(tmp_path) == before


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["feature_projection.projection.weight", "encoder.layers.1"])
@pytest.mark.parametrize("source", ["original", "family"])
def test_a_single_wrong_bit_is_noticed(name, source, save_original, small_space, tmp_path, monkeypatch, make_model):
    """One element of one weight, in the last bit that half precision has."""
    if source == "original":
        path, options = save_original(), {"search_space": small_space}
    else:
        path, options = tmp_path / "hubert", {}
        make_model(LightHubertModel, search_space=None).to_hubert().save_pretrained(path)
        Wav2Vec2FeatureExtractor().save_pretrained(path)
    write = converter.write_supernet

    def spoil(layout, folder, card):
        number = write(layout, folder, card)
        weights = load_file(folder / "model.safetensors")
        weight = next(weight for key, weight in weights.items() if name in key and weight.ndim in (1, 2))
        weight.view(-1)[3] *= 1 + 2**-11
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return number

    monkeypatch.setattr(converter, "write_supernet", spoil)
    with pytest.raises(ConversionError, match=r"differs from its source by .* nothing was written"):
        convert(path, tmp_path / "supernet", **options)


FULL_DISK = """
import os, resource, sys
from lighthubert_hf.conversion import convert
from pathlib import Path
folder, space = Path(sys.argv[1]), {
    "hidden_size": [64, 128], "num_attention_heads": [1, 2], "ffn_ratio": [4.0], "num_hidden_layers": [12]
}
before = sorted(os.listdir(folder))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
said = []
for limit in (0, 1000, 1_000_000, 9_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    for source, output, options in (
        ("original.pt", "new", {"search_space": space}), ("supernet", "new.pt", {"to_original": True})
    ):
        try:
            convert(folder / source, folder / output, verify=False, **options)
        except ValueError as error:
            said.append(str(error))
        assert sorted(os.listdir(folder)) == before, os.listdir(folder)
print(*said, sep="\\n")  # into a file, too
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes the Linux way")
def test_full_disk(tmp_path):
    """Of a file too large for the disk, and of one limit after the other, both ways."""
    torch.save(original_checkpoint(DESCRIPTION["cfg"]), tmp_path / "original.pt")
    convert(tmp_path / "original.pt", tmp_path / "supernet", search_space=DESCRIPTION["search_space"], verify=False)
    done = processes.run("-c", FULL_DISK, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert all("cannot be written" in line and "File too large" in line for line in lines)


def test_safetensors_are_what_the_library_writes(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 2).T,
        "ü": torch.randn(1),
    }
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in cast.items()}
        write_safetensors(tmp_path / "x", shapes, dtype, cast.items())
        read = load_file(tmp_path / "x")
        assert read.keys() == cast.keys()
        assert all(torch.equal(read[name], tensor) and read[name].dtype == dtype for name, tensor in cast.items())
        with safe_open(tmp_path / "x", "pt") as file:
            assert file.metadata() == {"format": "pt"}
        with pytest.raises(RuntimeError, match="a is not what the header promises"):
            write_safetensors(tmp_path / "x", shapes | {"a": (5, 3)}, dtype, cast.items())
        with pytest.raises(RuntimeError, match="fewer tensors"):
            write_safetensors(tmp_path / "x", shapes, dtype, list(cast.items())[:1])


COST = r"""
import json, re, sys
from pathlib import Path
from lighthubert_hf.conversion import convert
report = convert(sys.argv[1], sys.argv[2], verify=sys.argv[3] == "True")
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({"peak": int(peak) * 1024, **report.to_dict()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak of its memory")
@pytest.mark.parametrize("verify", [False, True])
def test_memory_of_converting_a_published_model(verify, tmp_path):
    """The whole process, with torch and transformers in it, stays below 1.6 times the size of a 381 MB checkpoint."""
    sizes = {
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "teacher_embed_dim": 768,
        "final_dim": 256,
        "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    }
    cfg = DESCRIPTION["cfg"] | sizes
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in original_shapes(cfg).items()}
    checkpoint = {"cfg": {"model": cfg, "task": {"normalize": True}}, "model": weights}
    path = tmp_path / "original.pt"
    torch.save(checkpoint, path)
    size = path.stat().st_size
    assert 380e6 < size < 382e6
    done = run(COST, path, tmp_path / "supernet", verify)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["peak"] < 1.6 * size
    assert (answer["max_difference"] is not None) == verify
    assert answer["num_parameters"] == 94_967_680
