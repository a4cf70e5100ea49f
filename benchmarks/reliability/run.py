"""What happens to a user's files when things go wrong: kills, changed inputs, a full disk, hostile folders and rows.

    python benchmarks/reliability/run.py --json OUT [--minutes N] [--seed N] [--docs FILE]

Every attempt runs a real command on tiny inputs. It must end as it would have, or go on and name what it leaves out,
or end with status 2 and one line; and what was there before must be whole. Another result than the sound inputs' is
right only where nothing can tell the changed input from a sound one, which the place of the change says: see
`unseeable`. All else that ends well counts as silently wrong.

The counts are kept in OUT after every attempt, and the same command adds to them, so a run may be stopped at any time.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import torch

sys.path.append(str(Path(__file__).parent))

from attempts import End, attempt, disk_of, files_below, fill, mutate, unseeable
from commands import COMMANDS, Command, contents, write_inputs

from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.files import is_leftover, write_json, write_text

MARKS = ("<!-- reliability -->", "<!-- /reliability -->")
ENDINGS = (
    "one line", "went on and named it", "as before", "other weights", "other values", "silently wrong", "badly said",
    "lost or published",
)  # fmt: skip
TOKEN = "hf_" + "Ab1" * 10
DISK = 24 << 20
_WRITTEN_ANEW = ("log.jsonl", "recipe.yaml", "study.db", "study.db-wal", "study.db-shm", "study.lock", "filler")


class Trials:
    """Sound inputs and results in `home`, and attempts on copies of them.

    Args:
        home: A folder; in it, where `has_disk`, a small file system `disk`.
        found: The counts so far, by group.
    """

    def __init__(self, home: Path, has_disk: bool, found: dict[str, dict[str, int]], findings: list[str]):
        self.home, self.has_disk = home, has_disk
        self.counts, self.findings = {name: Counter(found.get(name)) for name in GROUPS}, findings
        self.sound: dict[str, object] = {}
        self.seconds: dict[str, float] = {}
        (home / "sound").mkdir()
        with contextlib.chdir(home / "sound"):
            write_inputs()
            for command in COMMANDS:
                start = time.monotonic()
                end = attempt(command.arguments)
                assert end.status == 0, (command.name, end.said)
                self.seconds[command.name] = time.monotonic() - start
                self.sound[command.name] = command.result()

    @contextlib.contextmanager
    def workplace(self, place: str = "here") -> Iterator[Path]:
        """A copy of the inputs and of nothing else, to be in; away again in the end."""
        inputs = {name.partition("/")[0] for command in COMMANDS for name in command.inputs} | {"score.py"}
        folder = self.home / place
        folder.mkdir(exist_ok=True)
        for name in inputs:
            source = self.home / "sound" / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
        try:
            with contextlib.chdir(folder):
                yield folder
        finally:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def bring(self, command: Command, begun: bool) -> None:
        """What an earlier run of the command left in its output, whole, or `begun`, without the end."""
        shutil.copytree(self.home / "sound" / command.output, command.output)
        if begun:
            for name in ("model", "metrics.json", "pareto.json", "results.json", "checkpoints/step-00000003"):
                place = Path(command.output, name)
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)

    def note(self, group: str, ending: str, about: str, end: End) -> None:
        self.counts[group]["attempts"] += 1
        self.counts[group][ending] += 1
        if ending in ("silently wrong", "badly said", "lost or published"):
            self.findings.append(f"{group}: {ending}: {about}: {' '.join(end.said.split())[-500:]}")

    def judge(self, group: str, command: Command, end: End, about: str, file: Path | None, before: dict[str, bytes]):
        """Note how an attempt ended.

        Args:
            file: What was changed, if something was.
            before: All files, as they were before the attempt and before the change.
        """
        if end.is_one_line:
            whole = all(_read(name) == content for name, content in before.items() if _stays(name, file))
            return self.note(group, "one line" if whole else "lost or published", about, end)
        if end.status != 0:
            return self.note(group, "badly said", about, end)
        if command.result() == self.sound[command.name]:
            return self.note(group, "as before", about, end)
        if file is not None and file.name in end.said:
            return self.note(group, "went on and named it", about, end)
        is_input = file is not None and file.parts[0] != command.output
        reason = unseeable(file, before[str(file)]) if is_input else None
        return self.note(group, reason or "silently wrong", about, end)


def _read(name: str) -> bytes | None:
    path = Path(name)
    return path.read_bytes() if path.is_file() else None


def _stays(name: str, changed: Path | None) -> bool:
    return Path(name) != changed and Path(name).name not in _WRITTEN_ANEW


def changed_inputs(trials: Trials, rng: random.Random) -> None:
    """One file that the command reads, changed; for half of the commands their earlier output is there."""
    command = rng.choice(COMMANDS)
    with trials.workplace():
        if command.state == ():
            trials.bring(command, begun=False)
        files = files_below(command.inputs)
        if not command.name.startswith("push"):
            files = [file for file in files if file.suffix not in (".md", ".svg", ".py")]  # which nobody reads
        suffix = rng.choice(sorted({file.suffix for file in files}))  # or recordings, which are many, are all that is
        file = rng.choice([file for file in files if file.suffix == suffix])
        before = contents(Path())
        kind, at = mutate(file, rng)
        trials.judge(
            changed_inputs.__name__,
            command,
            attempt(command.arguments),
            f"{command.name}, {file} {kind} {at}",
            file,
            before,
        )


def damaged_state(trials: Trials, rng: random.Random) -> None:
    """One file of what an earlier run left to go on from."""
    command = rng.choice([command for command in COMMANDS if command.state])
    with trials.workplace():
        trials.bring(command, begun=rng.random() < 0.7)
        files = sorted({path for pattern in command.state for path in Path(command.output).glob(pattern)})
        file = rng.choice([path for path in files if path.is_file() and path.stat().st_size])
        before = contents(Path())
        kind, at = mutate(file, rng)
        trials.judge(
            damaged_state.__name__,
            command,
            attempt(command.arguments),
            f"{command.name}, {file} {kind} {at}",
            file,
            before,
        )


def kills(trials: Trials, rng: random.Random) -> None:
    """A process killed at a random moment; the same command must then end as if nothing had been."""
    command = rng.choice(COMMANDS)
    with trials.workplace():
        begun = rng.random() < 0.5 or not command.state
        if begun:
            trials.bring(command, begun=bool(command.state))
        before = contents(Path())
        seconds = rng.uniform(0, trials.seconds[command.name])
        attempt(command.arguments, kill_after=seconds)
        if not command.state and contents(Path(command.output)) != trials.sound[command.name]:
            return trials.note(kills.__name__, "lost or published", f"{command.name} after {seconds:.2f} s", End(None))
        end = attempt(command.arguments)
        left = [path for path in Path().rglob(".*") if is_leftover(path)]
        if left and end.status == 0:
            return trials.note(kills.__name__, "lost or published", f"{command.name} leaves {left}", end)
        return trials.judge(kills.__name__, command, end, f"{command.name} after {seconds:.2f} s", None, before)


def full_disk(trials: Trials, rng: random.Random) -> None:
    """No room on the disk, or none beyond a size of files; then, with room, the same command ends well."""
    command = rng.choice(COMMANDS)
    group, about = full_disk.__name__, command.name
    with trials.workplace("disk" if trials.has_disk else "here") as folder:
        begun = rng.random() < 0.5 or not command.state
        if begun:
            trials.bring(command, begun=bool(command.state))
        before = contents(Path())
        needed = sum(map(len, contents(trials.home / "sound" / command.output).values()))
        limit = None
        if trials.has_disk and rng.random() < 0.5:
            fill(folder, rng.randrange(needed))
        else:
            limit = rng.randrange(max(map(len, contents(trials.home / "sound" / command.output).values())))
        end = attempt(command.arguments, largest_file=limit)
        trials.judge(group, command, end, f"{about}, limit {limit}", None, before)
        if end.is_one_line:
            Path("filler").unlink(missing_ok=True)
            again = attempt(command.arguments)
            if again.status != 0 or command.result() != trials.sound[command.name]:
                trials.note(group, "lost or published", f"{about}, with room again", again)


def hostile_folders(trials: Trials, rng: random.Random) -> None:
    """Folders to publish with links, tokens and private files in them: none may be in what would be uploaded."""
    name = rng.choice(("LICENSE", "README.md", "notes.md", "credentials.json", "key.txt", "a.model", "train.py"))
    kind = rng.choice(("link", "token", "private"))
    with trials.workplace():
        place = Path("supernet", name)
        place.unlink(missing_ok=True)
        if kind == "link":
            place.symlink_to("/etc/hostname")
        else:
            secret = f"token {TOKEN}" if kind == "token" else "password: 1234"
            place.write_bytes(secret.encode(rng.choice(("utf-8", "utf-16", "utf-32"))))
        end = attempt(("push", "supernet", "me/x", "--dry-run", "dry"))
        found = contents(Path("dry")) if end.status == 0 else {}
        published = any(TOKEN.encode() in text.replace(b"\0", b"") for text in found.values())
        harmless = kind == "private" and name in ("LICENSE", "README.md")  # belongs to a model, whatever it says
        ending = "one line" if end.is_one_line else "badly said"
        if end.status == 0:
            ending = "as before" if harmless or name not in end.said else "went on and named it"
        if published or (name in found and not harmless):
            ending = "lost or published"
        trials.note(hostile_folders.__name__, ending, f"{name}, {kind}", end)


def hostile_rows(trials: Trials, rng: random.Random) -> None:
    """Rows that name what is none of theirs: the model must be the one that rows of no file at all give."""
    command = next(command for command in COMMANDS if command.name == "distill")
    arguments = (*command.arguments, "data.max_broken_share=1.0")
    with trials.workplace() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.flac"
        shutil.copy("speech/train-0.flac", "outside.flac")
        os.mkfifo("speech/pipe.flac")
        Path("speech/link.flac").symlink_to(folder / "outside.flac")
        paths = [
            url, f"simplecache::{url}", str(folder / "outside.flac"), "../outside.flac", "link.flac", "pipe.flac",
            "/dev/zero", f"file://{folder}/outside.flac", "evil://x", "", "a\0b", "s3://bucket/a.flac", None, 7, ".",
        ]  # fmt: skip
        sound = Path("speech/train.jsonl").read_text(encoding="utf-8").splitlines()
        chosen = rng.sample(paths, 3)
        results = []
        for names in (["none.flac"] * 3, chosen):
            lines = [*sound[:4], *(json.dumps({"audio": name, "text": "x"}) for name in names), *sound[4:]]
            Path("speech/train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            shutil.rmtree(command.output, ignore_errors=True)
            end = attempt(arguments)
            results.append(command.result() if end.status == 0 else None)
        called = True
        try:
            server.accept()
        except BlockingIOError:
            called = False
        ending = "went on and named it" if "train.jsonl, line" in end.said else "silently wrong"
        if results[0] != results[1] or called:
            ending = "lost or published"
        if end.status != 0:
            ending = "badly said"
        trials.note(hostile_rows.__name__, ending, repr(chosen), end)


# In turns; what has most to find out comes most often.
GROUPS: dict[str, tuple[str, Callable[[Trials, random.Random], None], int]] = {
    function.__name__: (title, function, turns)
    for title, function, turns in (
        ("inputs changed", changed_inputs, 6),
        ("kept state damaged", damaged_state, 4),
        ("kills", kills, 3),
        ("full disk", full_disk, 2),
        ("hostile folders", hostile_folders, 2),
        ("hostile rows", hostile_rows, 1),
    )
}


def table(results: dict) -> str:
    lines = [f"| tried | attempts | {' | '.join(ENDINGS)} |", "|---" * (len(ENDINGS) + 2) + "|"]
    for name, (title, _, _) in GROUPS.items():
        counts = results["counts"].get(name, {})
        cells = [counts.get(key, 0) for key in ("attempts", *ENDINGS)]
        lines.append(f"| {title} | {' | '.join(map(str, cells))} |")
    machine = results["machine"]["device"]
    options = f"--minutes {results['minutes']:.0f} --seed {results['seed']}"
    command = f"python benchmarks/reliability/run.py --json OUT {options}"
    return "\n".join([*lines, "", f"`{command}`, {machine}."])


def run(file: Path, minutes: float, seed: int) -> dict:
    """Add attempts to what `file` holds, for so many minutes."""
    torch.set_num_threads(1)
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    results = {"seed": seed, "machine": describe_machine(), "number": 0, "minutes": 0.0, "counts": {}, "findings": []}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    start = last = time.monotonic()
    turns = [function for _, function, number in GROUPS.values() for _ in range(number)]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        with disk_of(DISK, home / "disk") as mounted:
            trials = Trials(home, mounted, results["counts"], results["findings"])
            while time.monotonic() - start < 60 * minutes:
                number = results["number"]
                turns[number % len(turns)](trials, random.Random(f"{results['seed']} {number}"))
                now = time.monotonic()
                results |= {"number": number + 1, "minutes": results["minutes"] + (now - last) / 60}
                results["counts"] = {group: dict(counts) for group, counts in trials.counts.items()}
                last = now
                write_json(file, results)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="counts, added to if they are there")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="guide to put the table into")
    options = parser.parse_args()
    found = run(options.json, options.minutes, options.seed)
    print(table(found), *found["findings"], sep="\n")
    if options.docs:
        text = options.docs.read_text(encoding="utf-8")
        section = f"{MARKS[0]}\n{table(found)}\n{MARKS[1]}"
        write_text(options.docs, re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: section, text, flags=re.DOTALL))
