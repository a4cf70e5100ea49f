"""The parts of a run: what each needs, and the file its result goes to.

OUTPUT/setting.json             what the folder was made with; another setting is refused
OUTPUT/parts/PART[-SEED].json   a finished part, {"part", "seed", "wall_seconds", "result"}; not done again
OUTPUT/logs/                    what the parts said
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import Setting

from lighthubert_hf import files


@dataclass(frozen=True)
class Part:
    """Args:
    name, seed: which; the shared ones have no seed.
    needs: parts that must be done before.
    """

    name: str
    seed: int | None
    needs: tuple["Part", ...] = ()

    @property
    def key(self) -> str:
        return self.name if self.seed is None else f"{self.name}-{self.seed}"


def all_parts(setting: Setting) -> list[Part]:
    """In the order in which they are begun: a seed after the other, so that a run cut short has whole seeds."""
    from distilling import ADDITIONS

    corpus = Part("corpus", None)
    teacher = Part("teacher", None, (corpus,))
    parts = [corpus, teacher]
    for seed in setting.seeds:
        stage1 = Part("stage1", seed, (teacher,))
        stage2 = Part("stage2", seed, (stage1,))
        both = Part("stage2-alone", seed, (teacher,))
        alone = [Part(f"alone-{name}", seed, (teacher,)) for name in ("71", "29")]
        parts += [stage1, both, stage2, *alone]
        probes = Part("probes", seed, (stage1, stage2, both, *alone))
        parts += [probes, Part("ranking", seed, (stage2, probes)), Part("evolution", seed, (stage2,))]
        parts += [Part(name, seed, (stage1, stage2)) for name in ADDITIONS]
    return parts


class Results:
    """The finished parts in a folder."""

    def __init__(self, output: Path):
        self.output, self.folder = output, output / "parts"

    def claim(self, setting: Setting) -> None:
        """Make the folder this setting's. ValueError if it is another's, or something else."""
        path, wanted = self.output / "setting.json", json.loads(json.dumps(setting.to_dict()))
        if path.is_file():
            if json.loads(path.read_text()) != wanted:
                raise ValueError(f"{self.output} holds a run with another setting; choose another --output")
            return
        if self.output.exists() and any(self.output.iterdir()):
            raise ValueError(f"{self.output} is no run (it has no setting.json); choose another --output")
        self.folder.mkdir(parents=True)
        write_json(path, wanted)

    def path(self, part: Part) -> Path:
        return self.folder / f"{part.key}.json"

    def done(self, part: Part) -> bool:
        return self.path(part).is_file()

    def of(self, name: str, seed: int | None) -> Any:
        """The result of a part; `None` if it is not done."""
        path = self.path(Part(name, seed))
        return json.loads(path.read_text())["result"] if path.is_file() else None

    def collect(self, setting: Setting, parts: Sequence[Part] | None = None) -> dict[str, Any]:
        """All that is there: `{"shared": {part: …}, "seeds": {seed: {part: …}}, "wall_seconds": {key: …}}`.

        Args:
            parts: which to look for; by default those of the paper's claims.
        """
        found: dict[str, Any] = {"shared": {}, "seeds": {str(seed): {} for seed in setting.seeds}, "wall_seconds": {}}
        for part in all_parts(setting) if parts is None else parts:
            if self.done(part):
                entry = json.loads(self.path(part).read_text())
                place = found["shared"] if part.seed is None else found["seeds"][str(part.seed)]
                place[part.name] = entry["result"]
                found["wall_seconds"][part.key] = entry["wall_seconds"]
        return found


def run_part(part: Part, setting: Setting, output: Path) -> None:
    """Do a part whose needs are done, and keep its result."""
    from distilling import Workshop

    results = Results(output)
    if results.done(part):
        return
    if missing := [need.key for need in part.needs if not results.done(need)]:
        raise ValueError(f"{part.key} needs {', '.join(missing)}, to be run before (or leave --part out)")
    start = time.perf_counter()
    result = _function(part, results)(Workshop(output, setting, part.seed))
    entry = {"part": part.name, "seed": part.seed, "wall_seconds": round(time.perf_counter() - start, 1)}
    write_json(results.path(part), entry | {"result": result})


def _function(part: Part, results: Results) -> Callable[[Any], Any]:
    import distilling
    import probing

    functions = {
        "corpus": distilling.corpus,
        "teacher": distilling.teacher,
        "stage1": distilling.stage1,
        "stage2": distilling.stage2,
        "stage2-alone": distilling.stage2_alone,
        "probes": probing.probes,
        "ranking": probing.ranking,
        "evolution": probing.evolution,
    }
    if part.name in functions:
        return functions[part.name]
    if part.name.startswith("alone-"):
        return lambda shop: distilling.alone(shop, part.name.removeprefix("alone-"))
    plain, before = results.of("stage2", part.seed), results.of("stage1", part.seed)
    return lambda shop: distilling.addition(shop, part.name, plain, before)


def write_json(path: Path, value: Any) -> None:
    """Beside its place and then renamed: a file that is there is whole."""
    files.write_json(path, value, indent=1)
