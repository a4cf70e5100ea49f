"""The command line: answers quickly, and what a user can mend is one line and exit status 2."""

import io
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import tqdm

import lighthubert_hf
from lighthubert_hf.cli import app, main
from lighthubert_hf.cli.app import Commands, Json, answer

from . import processes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """`refusal(*arguments)`: what `lighthubert` says when it ends with status 2.

    In this process, since starting one takes seconds, in `tmp_path` and offline: names that are no folder must not
    wait for the network.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lighthubert", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert end.value.code == 2, said
        return said

    return call


def test_help_needs_no_torch():
    script = (
        "import sys; sys.argv = ['lighthubert', '--help']\n"
        "from lighthubert_command import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'a heavy import on the way to --help'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    commands = ("demo", "convert", "distill", "cost", "search", "extract", "profile", "finetune", "evaluate", "push")
    for command in (*commands, "push-family", "retrain"):
        assert command in done.stdout


def test_the_command_is_installed(tmp_path):
    command = [Path(sys.executable).with_name("lighthubert"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"lighthubert_hf {lighthubert_hf.__version__}\n", done.stderr


def test_the_module_is_the_command(tmp_path):
    """`python -m lighthubert_hf`, as launchers of several processes call it."""
    done = processes.run("-m", "lighthubert_hf", "--version", cwd=tmp_path)
    assert done.stdout == f"lighthubert_hf {lighthubert_hf.__version__}\n", done.stderr


def test_a_script_of_the_commands_name_has_the_auto_classes(tmp_path):
    (tmp_path / "lighthubert.py").write_text(
        "import lighthubert_hf\n"
        "from transformers import AutoConfig\n"
        "print(type(AutoConfig.for_model('lighthubert')).__name__)\n"
    )
    done = processes.run("lighthubert.py", cwd=tmp_path)
    assert done.stdout == "LightHubertConfig\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["extract", "nowhere", "out"], ["nowhere"]),
        (["convert", "nowhere.pt", "out"], ["nowhere.pt"]),
        (["distill", "no-such-recipe"], ["no-such-recipe", "lighthubert-small"]),
        (["distill", "lighthubert-small", "optimiser.lr=1"], ["optimiser", "optimizer"]),
        (["finetune", "no-such-recipe"], ["no-such-recipe", "finetune-ctc"]),
        (["demo", "--output", "taken"], ["taken", "--output"]),
        (["push", "nowhere", "me/model"], ["nowhere"]),
        (["profile", "nowhere"], ["nowhere"]),
        (["search", "nowhere", "out"], ["nowhere"]),
        (["search", "nowhere", "out", "--trials", "9" * 12], ["trials", "9" * 12]),
        (["search", "nowhere", "out", "--population-size", "9" * 12], ["population_size", "9" * 12]),
        (["search", "nowhere", "out", "--seed", "-1"], ["seed", "-1"]),
        (["search", "nowhere", "out", "--extract", "-1"], ["extract", "-1"]),
        (["search", "nowhere", "out", "--max-examples", "0"], ["max-examples", "0"]),
        (["search", "nowhere", "out", "--max-params", "1e400"], ["1e400", "finite"]),
        (["search", "nowhere", "out", "--max-macs", "1e-400G"], ["1e-400G", "above 0"]),
        (["search", "nowhere", "out", "--max-params", "nan"], ["nan", "30M"]),
        (["search", "nowhere", "out", "--max-latency", "60ms@999999s"], ["999999", "36,000"]),
        (["search", "nowhere", "out", "--objective", "memory@9999999x10s"], ["9999999", "36,000"]),
        (["cost", "lighthubert-small", "--processes", "0"], ["processes", "0"]),
        (["cost", "lighthubert-small", "--tflops", "nan"], ["tflops", "nan"]),
        (["evaluate", "nowhere", "--tiny", "--steps", "9" * 12], ["steps", "9" * 12]),
        (["evaluate", "nowhere", "--tiny", "--scale", "inf"], ["scale", "inf"]),
        (["finetune", "finetune-ctc", "training.steps=" + "9" * 12], ["training.steps", "9" * 12]),
        (["distill", "lighthubert-small", "data.num_workers=1000000"], ["data.num_workers", "256"]),
        (["evaluate", "nowhere", "--tiny"], ["nowhere"]),
        (["units", "fit", "nowhere", "taken", "--layer", "6"], ["nowhere", "--output"]),
        (["units", "apply", "nowhere", "taken", "out"], ["nowhere"]),
        (["features", "nowhere", "taken", "out", "--layer", "six"], ["six", "6,9"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, named, tmp_path, refusal):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    said = refusal(*arguments)
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert all(word in lines[0] for word in named), lines[0]
    assert sorted(tmp_path.rglob("*")) == before, "something half-written was left behind"


def test_extract_writes_a_static_model(tiny_supernet, tmp_path):
    tiny_supernet.save_pretrained(tmp_path / "supernet")
    subnet = tiny_supernet.search_space.smallest()
    (tmp_path / "subnet.json").write_text(json.dumps(subnet.to_dict()))
    program = "from lighthubert_command import main; main()"
    done = processes.run("-c", program, "extract", "supernet", "out", "--subnet", "subnet.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["search_space"] is None
    assert config["hidden_size"] == subnet.hidden_size
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_axes_and_devices_that_there_are_not(tiny_supernet, tmp_path, refusal):
    tiny_supernet.save_pretrained(tmp_path / "supernet")
    search = ("search", "supernet", "out", "--score", "math:sqrt")
    assert "unknown cost 'weight'; allowed: parameters, macs" in refusal(*search, "--plot", "weight").splitlines()[-1]
    for option, value in (
        ("seconds", "inf"),
        ("seconds", "nan"),
        ("seconds", "-1"),
        ("batch", "9" * 9),
        ("repeats", "9" * 9),
    ):
        assert value in refusal("profile", "supernet", f"--{option}", value).splitlines()[-1].replace(",", "")
    for command in (search, ("profile", "supernet")):
        said = refusal(*command, "--device", "abacus").splitlines()[-1]
        assert said.startswith("lighthubert: the device 'abacus' cannot be used (")
        assert "here there is cpu" in said
    assert not (tmp_path / "out").exists()


def test_search_names_the_smallest_possible_value_and_leaves_nothing(tiny_supernet, tmp_path, refusal):
    tiny_supernet.save_pretrained(tmp_path / "supernet")
    (tmp_path / "scores.py").write_text("def width(subnet):\n    return subnet.hidden_size\n")
    said = refusal("search", "supernet", "out", "--score", "scores.py:width", "--max-params", "1k")
    assert said.splitlines()[-1].startswith(
        "lighthubert: no subnet meets parameters <= 1k: the smallest possible value is"
    )
    assert not (tmp_path / "out").exists()


def test_with_json_standard_output_is_the_json_alone(monkeypatch, capsys):
    """Whatever is printed meanwhile, by whom ever."""
    app = Commands()

    @app.command()
    def noisy(as_json: Json = False) -> None:
        print("a library prints this")
        tqdm.tqdm.write("and a bar this")
        answer({"score": 0.5}, as_json, "score 0.5")
        print("and this at the end")

    monkeypatch.setattr(sys, "argv", ["noisy", "--json"])
    with pytest.raises(SystemExit):
        app()
    said = capsys.readouterr()
    assert json.loads(said.out) == {"score": 0.5}
    assert all(line in said.err for line in ("a library", "a bar", "at the end"))


def test_of_several_processes_one_answers(monkeypatch, capsys):
    for rank, expected in (("0", "done\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        answer({}, False, "done")
        assert capsys.readouterr().out == expected


def test_every_command_can_answer_in_json():
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    callbacks = [command.callback for group in groups for command in group.registered_commands]
    assert len(callbacks) > 15
    assert [call.__name__ for call in callbacks if "as_json" not in call.__annotations__] == []
    assert all(type(group) is Commands for group in groups)


def _allocating(number: int) -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(number)
    return caught.value


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), _allocating(10**18)])
def test_what_does_not_fit_into_memory_is_said_in_one_line(monkeypatch, refusal, error):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr("lighthubert_hf.loading.load_encoder", fails)
    assert refusal("profile", "x").startswith("lighthubert: out of memory (")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "→ …".encode()), ("latin-1", b"? ?"), ("utf-8", "→ …".encode())]
)
def test_any_text_is_written_whatever_the_locale(monkeypatch, encoding, shown):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["lighthubert", "--version"])
    with pytest.raises(SystemExit):
        main()
    print("→ …", end="", flush=True)
    assert written.getvalue().endswith(shown)
