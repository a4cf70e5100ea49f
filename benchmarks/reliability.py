"""What happens to a user's files when things go wrong: kills, mutated inputs, a full disk, hostile folders.

    python benchmarks/reliability.py [--rounds N] [--seed N] [--json OUT] [--docs FILE]

Every attempt runs the real command. It must end well, or with status 2 and one line, and what was there before must be
whole. What ends well on a damaged input with another output than the sound one's is counted apart: a changed bit of a
weight is a weight like another.
"""

import argparse
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import huggingface_hub
import torch

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.cli import main
from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.files import is_leftover, write_json, write_text
from lighthubert_hf.hub.folder import save_model_folder

MARKS = ("<!-- reliability -->", "<!-- /reliability -->")
EXTRACT = ("extract", "supernet", "out", "--overwrite")
PUSH = ("push", "supernet", "me/x", "--dry-run", "dry", "--overwrite")
TOKEN = "hf_" + "Ab1" * 10


def supernet() -> LightHubertModel:
    torch.manual_seed(0)
    space = SearchSpace(
        hidden_size=(16, 32), num_attention_heads=(1, 2), ffn_ratio=(1.0, 2.0), num_hidden_layers=(1, 2)
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    front = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    position = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "intermediate_size": 64}
    return LightHubertModel(LightHubertConfig(**sizes, **front, **position, search_space=space.to_dict()))


def run(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Status and standard error of a command, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["lighthubert", *arguments]
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for the record, which names nothing that a reader uses."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".made.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def judged(status: int, said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("lighthubert: ")]
    if status == 2 and len(lines) == 1 and "Traceback" not in said:
        return "one line"
    return "went on" if status == 0 else "badly said"


def mutate(file: Path, rng: random.Random) -> None:
    raw = bytearray(file.read_bytes())
    kind = rng.choice(("cut", "flip", "zero", "insert", "empty"))
    at = rng.randrange(len(raw))
    if kind == "cut":
        del raw[at:]
    elif kind == "flip":
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    elif kind == "insert":
        raw[at:at] = rng.randbytes(16)
    else:
        raw.clear()
    file.write_bytes(raw)


def mutated_inputs(rounds: int, rng: random.Random) -> Counter:
    """`extract` and `push --dry-run` of a folder of which one file was changed at random."""
    counts = Counter()
    sound = {EXTRACT: contents(Path("out")), PUSH: contents(Path("dry"))}
    files = [path.name for path in Path("supernet").iterdir() if path.suffix in (".json", ".safetensors")]
    for _ in range(rounds):
        name, command = rng.choice(files), rng.choice((EXTRACT, PUSH))
        before = contents(Path(command[2] if command is EXTRACT else "dry"))
        shutil.copytree("supernet", "kept")
        mutate(Path("supernet", name), rng)
        status, said = run(command)
        ending = judged(status, said)
        counts[ending] += 1
        after = contents(Path(command[2] if command is EXTRACT else "dry"))
        counts["lost"] += ending != "went on" and after != before
        counts["other output"] += ending == "went on" and after != sound[command]
        shutil.rmtree("supernet")
        shutil.move("kept", "supernet")
        counts["attempts"] += 1
    return counts


def full_disk(rounds: int, rng: random.Random) -> Counter:
    """The same commands where no file may grow beyond a random size."""
    counts, (soft, hard) = Counter(), resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = Path("supernet", "model.safetensors").stat().st_size
    for _ in range(rounds):
        command = rng.choice((EXTRACT, PUSH))
        place = Path("out" if command is EXTRACT else "dry")
        before = contents(place)
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(size), hard))
        try:
            status, said = run(command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ending = judged(status, said)
        counts[ending] += 1
        counts["lost"] += ending != "went on" and contents(place) != before
        counts["attempts"] += 1
    return counts


def kills(rounds: int, rng: random.Random) -> Counter:
    """A process that saves a model again and again, killed at a random moment."""
    code = (
        "import benchmarks.reliability as r, itertools\nmodel = r.supernet()\nprint('ready', flush=True)\n"
        "for _ in itertools.count():\n    r.save_model_folder(model, 'killed')\n"
    )
    counts, sound = Counter(), None
    root = str(Path(__file__).resolve().parents[1])
    for _ in range(rounds):
        environment = os.environ | {"PYTHONPATH": root}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.6))
        child.kill()
        child.wait()
        save_model_folder(supernet(), "killed")  # sweeps, restores, and is not refused
        sound = sound or contents(Path("killed"))
        counts["lost"] += contents(Path("killed")) != sound
        counts["leftovers"] += any(is_leftover(path) for path in Path().iterdir())
        counts["attempts"] += 1
        counts["went on"] += 1
    return counts


def hostile_folders(rounds: int, rng: random.Random) -> Counter:
    """Folders to publish with links, tokens and private files in them: none may be in what would be uploaded."""
    counts = Counter()
    for number in range(rounds):
        shutil.copytree("supernet", "hostile")
        name = rng.choice(("LICENSE", "README.md", "notes.md", "credentials.json", "key.txt", "a.model", "train.py"))
        kind = rng.choice(("link", "token", "private"))
        place = Path("hostile", name)
        place.unlink(missing_ok=True)
        if kind == "link":
            place.symlink_to("/etc/hostname")
        else:
            secret = f"token {TOKEN}" if kind == "token" else "password: 1234"
            place.write_bytes(secret.encode(rng.choice(("utf-8", "utf-16", "utf-32"))))
        status, said = run(("push", "hostile", "me/x", "--dry-run", f"dry{number}"))
        counts[judged(status, said)] += 1
        found = contents(Path(f"dry{number}")) if status == 0 else {}
        published = any(TOKEN.encode() in text.replace(b"\0", b"") for text in found.values())
        harmless = kind == "private" and name in ("LICENSE", "README.md")  # belongs to a model, whatever it says
        counts["published"] += published or (name in found and not harmless)
        counts["attempts"] += 1
        shutil.rmtree("hostile")
    return counts


def table(results: dict) -> str:
    lines = [
        "| tried | attempts | one line | ended well | with another output | badly said | lost or published |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, counts in results["counts"].items():
        bad = counts.get("lost", 0) + counts.get("published", 0) + counts.get("leftovers", 0)
        cells = [counts.get(key, 0) for key in ("attempts", "one line", "went on", "other output", "badly said")]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {bad} |")
    machine = results["machine"]["device"]
    return "\n".join([*lines, "", f"`python benchmarks/reliability.py --rounds {results['rounds']}`, {machine}."])


def measure(rounds: int, seed: int) -> dict:
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    rng = random.Random(seed)
    programs = {
        "mutated inputs": mutated_inputs,
        "full disk": full_disk,
        "kills while saving": lambda number, rng: kills(max(1, number // 10), rng),
        "hostile folders": hostile_folders,
    }
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        save_model_folder(supernet(), "supernet")
        for command in (EXTRACT, PUSH):
            status, said = run(command)
            assert status == 0, said
        counts = {name: dict(program(rounds, rng)) for name, program in programs.items()}
    return {"rounds": rounds, "seed": seed, "machine": describe_machine(), "counts": counts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    found = measure(options.rounds, options.seed)
    print(table(found))
    if options.json:
        write_json(options.json, found)
    if options.docs:
        text = options.docs.read_text(encoding="utf-8")
        section = f"{MARKS[0]}\n{table(found)}\n{MARKS[1]}"
        write_text(options.docs, re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: section, text, flags=re.DOTALL))
