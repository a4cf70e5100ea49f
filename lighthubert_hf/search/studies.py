"""The optuna studies of a search: opening them, scoring what their samplers draw, reading what was found."""

import itertools
import logging
import math
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lighthubert_hf.extras import importing
from lighthubert_hf.files import WriteError, data_checksum
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.progress import progress_bar

from .costs import Limits
from .pareto import pareto_front
from .sampler import Genome, SubnetSampler, minimised_values
from .workers import Worker, alone_in

with importing("search", what="the search"):
    import optuna
    import sqlalchemy
    from optuna.study import Study
    from optuna.trial import TrialState

logger = logging.getLogger(__name__)

FILE = "study.db"
_MADE_HERE = (f"{FILE}*", "pareto.*", "latency@*.json")
WAIT_SECONDS = 0.1  # between looks at whether another process has scored a subnet
LOCK_SECONDS = 60  # how long a process waits for another that writes to the database


@dataclass
class Studies:
    """The studies of one output folder, one per algorithm, and what they need to draw and score subnets.

    Args:
        folder: holds `study.db`, an SQLite database that optuna's dashboard can open.
        settings: what determines the search; studies made with others are refused.
        score: of a subnet.
        maximize: whether a higher score is better.
        objectives: name and function of the costs that are minimised.
        limits: what a subnet may cost.
        genome: the genes.
        anchors: subnets that are scored in any case, before all others.
    """

    folder: Path
    settings: dict[str, Any]
    score: Callable[[Subnet], float]
    maximize: bool
    objectives: dict[str, Callable[[Subnet], float]]
    limits: Limits
    genome: Genome
    anchors: Sequence[Subnet]

    def __post_init__(self):
        self._storage = _open_storage(self.folder)
        self._studies: dict[str, Study] = {}
        with alone_in(self.folder):
            self._worker = Worker(self.folder)

    def close(self) -> None:
        """To be called at the end; a process that dies before is noticed by the others."""
        with alone_in(self.folder):
            self._worker.close()

    def run(self, algorithm: str, evolves: bool, trials: int, progress: bool) -> None:
        """Score subnets until `trials` different ones are in the study, or no further one is allowed.

        Raises:
            ValueError: if the study was made for another supernet or with other settings.
        """
        sampler = SubnetSampler(
            self.genome,
            self.limits.allow,
            self.anchors,
            self.limits.feasible_uniform,
            self.settings["seed"],
            self.settings["population_size"] if evolves else None,
        )
        study = self._open(algorithm, sampler)
        with progress_bar(None, f"{algorithm} search", total=trials, unit="subnets", shown=progress) as bar:
            while True:
                done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
                bar.update(len(done) - bar.n)
                bar.set_postfix(self._progress(study, done))
                missing = {anchor.key for anchor in self.anchors} - {trial.user_attrs["key"] for trial in done}
                if len(done) >= trials and not missing:
                    return
                if not self._try_one(study, sampler):
                    logger.warning("%s search ends after %d subnets: no other is within the limits", algorithm, bar.n)
                    return

    def _open(self, algorithm: str, sampler: SubnetSampler) -> Study:
        study = optuna.create_study(
            study_name=algorithm,
            storage=self._storage,
            sampler=sampler,
            directions=["maximize" if self.maximize else "minimize"] + ["minimize"] * len(self.objectives),
            load_if_exists=True,
        )
        if "settings" not in study.user_attrs:  # two processes would write the same
            with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                study.set_metric_names([self.settings["score"], *self.objectives])
            study.set_user_attr("settings", self.settings)
        _check_study(study, self.settings, self.folder)
        return study

    def _try_one(self, study: Study, sampler: SubnetSampler) -> bool:
        """Draw a subnet and score it; false if there is none left."""
        with alone_in(self.folder):  # or two processes that draw at the same instant may draw the same
            trial, subnet = self._draw(study, sampler)
        if subnet is None:
            return False
        try:
            trial.set_user_attr("subnet", str(subnet))
            for name, excess in self.limits.excess(subnet).items():
                trial.set_constraint(name, excess)
            score = self._score_of_others(trial, subnet)
            score = self._finite_score(subnet) if score is None else score
            values = [score, *(float(cost(subnet)) for cost in self.objectives.values())]
            trial.set_user_attr("checksum", _checksum(subnet.key, trial.params, values))
            study.tell(trial, values)
        except BaseException:  # Ctrl-C too: the next process shall draw this one again
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        return True

    def _draw(self, study: Study, sampler: SubnetSampler) -> tuple[optuna.Trial, Subnet | None]:
        """A running trial and its subnet, by whose key other processes know that it is taken."""
        self._give_up_for_the_dead()
        trial = study.ask(self.genome.distributions)
        try:
            if sampler.exhausted:
                study.tell(trial, state=TrialState.FAIL)
                return trial, None
            subnet = self.genome.decode(trial.params)
            trial.set_user_attr("worker", self._worker.name)
            trial.set_user_attr("waits", self._is_being_scored(subnet))
            trial.set_user_attr("key", subnet.key)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        return trial, subnet

    def _running(self) -> Iterator[tuple[Study, optuna.trial.FrozenTrial]]:
        for study in self._all_studies().values():
            for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                yield study, trial

    def _give_up_for_the_dead(self) -> None:
        """What a killed process was scoring is free to be drawn again, as if it had never been."""
        for study, trial in self._running():
            if not self._worker.sees(trial.user_attrs.get("worker", "")):
                study.tell(trial.number, state=TrialState.FAIL)

    def _is_being_scored(self, subnet: Subnet) -> bool:
        """Whether a living process does so for another study: in one study nobody draws what is taken."""
        attributes = (trial.user_attrs for _, trial in self._running())
        return any(found.get("key") == subnet.key and not found["waits"] for found in attributes)

    def _score_of_others(self, trial: optuna.Trial, subnet: Subnet) -> float | None:
        """A known score, waited for if another process is at it; `None` if this one shall score the subnet."""
        while (score := self._known_scores().get(subnet.key)) is None and trial.user_attrs["waits"]:
            time.sleep(WAIT_SECONDS)
            with alone_in(self.folder):  # of several that wait for a process that died, one takes over
                self._give_up_for_the_dead()
                if subnet.key not in self._known_scores() and not self._is_being_scored(subnet):
                    trial.set_user_attr("waits", False)
        return score

    def _finite_score(self, subnet: Subnet) -> float:
        score = float(self.score(subnet))
        if math.isnan(score):
            logger.warning("the score of %s is NaN; it counts as the worst", subnet)
            return -math.inf if self.maximize else math.inf
        return score

    def _all_studies(self) -> dict[str, Study]:
        for name in optuna.get_all_study_names(self._storage):
            if name not in self._studies:
                self._studies[name] = optuna.load_study(study_name=name, storage=self._storage)
        return dict(sorted(self._studies.items()))

    def _finished(self) -> dict[str, list[optuna.trial.FrozenTrial]]:
        return {
            name: study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            for name, study in self._all_studies().items()
        }

    def _known_scores(self) -> dict[str, float]:
        trials = itertools.chain.from_iterable(self._finished().values())
        return {trial.user_attrs["key"]: trial.values[0] for trial in trials}

    def found(self) -> dict[str, list[tuple[Subnet, float]]]:
        """Every algorithm's subnets with their scores, in the order in which they were tried."""
        return {
            name: [(self.genome.decode(trial.params), trial.values[0]) for trial in trials]
            for name, trials in self._finished().items()
        }

    @staticmethod
    def _progress(study: Study, done: list[optuna.trial.FrozenTrial]) -> dict[str, str]:
        """Size of the front and best score so far."""
        allowed = [trial for trial in done if all(value <= 0 for value in trial.constraints.values())]
        if not allowed:
            return {}
        front = pareto_front([minimised_values(trial, study) for trial in allowed])
        scores = [trial.values[0] for trial in allowed]
        maximize = study.directions[0] == optuna.study.StudyDirection.MAXIMIZE
        return {"front": str(len(front)), "best": f"{max(scores) if maximize else min(scores):.4g}"}


def check_study_folder(folder: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
    """Raise a ValueError if `folder` holds a search of another supernet or with other settings, or something else.

    `overwrite` removes a search that is there instead: its studies, measurements and report.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder for the search")
    if not (folder / FILE).is_file():
        others = [entry.name for entry in folder.iterdir() if not _is_made_here(entry)] if folder.is_dir() else []
        if others:
            raise ValueError(
                f"{folder} holds something else (it has {min(others)!r}, no {FILE}); choose another output folder"
            )
        return
    if overwrite:
        with alone_in(folder):
            for path in folder.iterdir():
                if any(path.match(pattern) for pattern in _MADE_HERE):
                    path.unlink()
        return
    with database_errors(folder):
        studies = _read_all(folder)
    for study in studies:
        _check_study(study, settings, folder)


@contextmanager
def database_errors(folder: Path) -> Iterator[None]:
    """Turn what a damaged database, or a full disk, makes optuna raise into one line with the file's name."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        while error.__cause__ is not None:
            error = error.__cause__
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        if "full" in reason or "I/O" in reason or "readonly" in reason:
            raise WriteError(f"{folder / FILE} cannot be written: {reason}; what was found is kept") from None
        raise ValueError(_damaged(folder, reason)) from None


def _damaged(folder: Path, reason: str) -> str:
    return f"{folder / FILE} is damaged ({reason}); restore it, or start over with --overwrite (overwrite=True)"


def _read_all(folder: Path) -> list[Study]:
    """Every study with all that its trials hold read once, so that damage shows before anything is scored."""
    with sqlite3.connect(f"file:{quote(str(folder / FILE))}?mode=ro", uri=True) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        lost = connection.execute("PRAGMA foreign_key_check").fetchone()
    connection.close()
    if found != "ok" or lost:
        raise ValueError(_damaged(folder, f"rows of {lost[0]} are of nothing" if lost else found))
    try:
        storage = _open_storage(folder)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
        for study in studies:
            if "settings" in study.user_attrs and not isinstance(study.user_attrs["settings"], dict):
                raise TypeError("settings")
            for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
                known = trial.user_attrs
                if not (isinstance(known["key"], str) and isinstance(known["subnet"], str)):
                    raise TypeError(f"trial {trial.number}")
                if known.get("checksum") != _checksum(known["key"], trial.params, trial.values):
                    raise ValueError(f"trial {trial.number} is not what was written")
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        raise ValueError(_damaged(folder, " ".join(f"{type(error).__name__} {error}".split()))) from None
    return studies


def _checksum(key: str, params: dict[str, Any], values: Sequence[float]) -> str:
    """Of what a trial found. SQLite has none of its own."""
    return data_checksum([key, params, list(values)])


def _is_made_here(path: Path) -> bool:
    return path.name.startswith(".") or any(path.match(pattern) for pattern in (*_MADE_HERE, "study.lock"))


def _check_study(study: Study, settings: dict[str, Any], folder: Path) -> None:
    found = study.user_attrs.get("settings", settings)  # another process may be about to write them
    different = [name for name, value in settings.items() if found.get(name) != value]
    if not different:
        return
    remedy = "choose another output folder, or start over with --overwrite (overwrite=True)"
    if "fingerprint" in different:
        raise ValueError(
            f"{folder} holds a search of another supernet ({found['supernet'] or 'unnamed'}, fingerprint "
            f"{found['fingerprint']}, not {settings['fingerprint']}); {remedy}"
        )
    changes = "; ".join(f"{name} was {found.get(name)!r}, now {settings[name]!r}" for name in different)
    raise ValueError(f"{folder} holds a search with other settings: {changes}; {remedy}")


def _open_storage(folder: Path) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with alone_in(folder):  # of two processes that make the tables at once, one would fail
        database = optuna.storages.RDBStorage(
            f"sqlite:///{folder / FILE}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}}
        )
        sqlalchemy.event.listen(database.engine, "connect", _configure)
        database.engine.dispose()  # its first connection is not configured yet
        database.engine.connect().close()
    return optuna.storages.get_storage(database)


def _configure(connection, _record) -> None:
    """Write-ahead logging without a flush to disk per commit: a trial costs about 30 commits.

    A process that is killed loses nothing; the last trials before a power cut may be lost.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
