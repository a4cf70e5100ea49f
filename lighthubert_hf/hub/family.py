"""Publishing several subnets of one supernet together: named by size, in one collection, linked from the supernet.

What to publish is said by a `pareto.json`, which the search writes:

    {"supernet": "folder or Hub id", "revision": "commit or null", "score": "loss",
     "subnets": [{"name": "…", "subnet": {…}, "parameters": 26878123, "macs_per_second": 3600000000, "loss": 0.231,
                  "folder": "where it is saved, or null", "on_front": true, "latency": {…}}]}

Every subnet has its score under the name that `score` gives ("loss" by default). Where `on_front` says which subnets
are on the front, those with a folder are published, or if none has one, the front; where it does not, all are.
"""

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import Collection, CommitInfo, CommitOperationAdd, HfApi

from lighthubert_hf.absent import absent
from lighthubert_hf.costs.figures import human, size_names
from lighthubert_hf.costs.profiling import count_parameters, macs_per_second
from lighthubert_hf.files import read_object, replacing_folder
from lighthubert_hf.loading import load_config
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.progress import progress_bar

from .card import CardFacts, FamilyMember, Latency, is_hub_id, read_config, with_family
from .derived import Parent, completed_facts
from .folder import CONFIG, README, load_facts, save_model_folder
from .publishing import PushResult, check_folder, load_supernet, push_folder
from .upload import PublishingError, Upload, clean_token, one_line_errors, retried


@dataclass(frozen=True)
class FamilyEntry:
    """One subnet of a `pareto.json`."""

    name: str
    subnet: Subnet
    parameters: int
    macs_per_second: int
    score: float
    folder: Path | None = None
    latency: Latency | None = None


@dataclass(frozen=True)
class Pareto:
    """A `pareto.json`, of its subnets those to be published. `supernet` is a Hub id, or a folder, then a `Path`."""

    supernet: str | Path
    revision: str | None
    score_name: str
    subnets: tuple[FamilyEntry, ...]


@dataclass(frozen=True)
class FamilyResult:
    """What `push_family` did.

    Attributes:
        subnets: one result for each subnet, in the order of the file.
        supernet: of the supernet, if it is a folder and was published too; else `None`.
        supernet_commit: the commit that linked the subnets from a supernet already on the Hub; else `None`.
        collection: address of the collection; `None` after a dry run.
        space: address of the Space, if there is one; after a dry run its folder.
    """

    subnets: tuple[PushResult, ...]
    supernet: PushResult | None = None
    supernet_commit: CommitInfo | None = None
    collection: str | None = None
    space: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "subnets": [result.to_dict() for result in self.subnets],
            "supernet": self.supernet and self.supernet.to_dict(),
            "supernet_commit": self.supernet_commit and self.supernet_commit.oid,
            "collection": self.collection,
            "space": self.space,
        }

    def __str__(self) -> str:
        results = [*self.subnets, *([self.supernet] if self.supernet else [])]
        addresses = {"collection": self.collection, "space": self.space}
        return "\n".join([*map(str, results), *(f"{key}: {value}" for key, value in addresses.items() if value)])


def read_pareto(path: str | Path) -> Pareto:
    """Read a `pareto.json`. Keys beyond those above are ignored, those above are checked.

    Folders are looked for beside the file, then from where the program was started.

    Raises:
        FileNotFoundError: if the file or a folder that it names does not exist.
        ValueError: if something is missing or of the wrong kind.
    """
    path = Path(path)
    if not path.is_file():
        raise absent("pareto.json of a search", path)
    data = read_object(path)
    supernet = _field(data, "supernet", str, str(path))
    if not supernet:
        raise ValueError(f"{path}: supernet is empty; write the folder or Hub id of the supernet there")
    score = _field(data, "score", str, str(path), optional=True) or "loss"
    items = [(f"{path}: subnet {index}", item) for index, item in enumerate(_field(data, "subnets", list, str(path)))]
    for where, item in items:
        if not isinstance(item, Mapping):
            raise ValueError(f"{where} must be an object, got {item!r}")
    any_saved = any(item.get("folder") for _, item in items if "on_front" in item)
    chosen = [(where, item) for where, item in items if _is_chosen(item, any_saved)]
    if not chosen:
        raise ValueError(f"{path} has no subnet on the front, there is nothing to publish")
    subnets = tuple(_entry(item, score, where, path.parent) for where, item in chosen)
    revision = _field(data, "revision", str, str(path), optional=True)
    return Pareto(_find_folder(supernet, path.parent) or supernet, revision, score, subnets)


def _is_chosen(item: Mapping[str, Any], any_saved: bool) -> bool:
    """A search lists all that it has seen: of these the saved ones are meant, or else the front."""
    if "on_front" not in item:
        return True
    return bool(item.get("folder") if any_saved else item["on_front"])


_KINDS = {str: "a string", list: "a list", Mapping: "an object", float: "a number"}


def _field(data: Mapping[str, Any], key: str, kind: type, where: str, optional: bool = False) -> Any:
    value = data.get(key)
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
        raise ValueError(f"{where}: {key} must be {_KINDS[kind]}, got {value!r}")
    return value


def _count(data: Mapping[str, Any], key: str, where: str) -> int:
    value = _field(data, key, float, where)
    if not math.isfinite(value) or value < 0 or value != round(value):
        raise ValueError(f"{where}: {key} must be a whole number of at least 0, got {value}")
    return round(value)


def _entry(data: Mapping[str, Any], score_name: str, where: str, beside: Path) -> FamilyEntry:
    folder = _field(data, "folder", str, where, optional=True)
    found = _find_folder(folder, beside) if folder else None
    if folder and found is None:
        raise FileNotFoundError(f"{where}: there is no folder {folder}; set it to null to extract the subnet anew")
    score = _field(data, score_name, float, where)
    if not math.isfinite(score):
        raise ValueError(f"{where}: {score_name} must be a finite number, got {score}")
    try:
        subnet = Subnet.from_dict(_field(data, "subnet", Mapping, where))
        latency = Latency(**data["latency"]) if isinstance(data.get("latency"), Mapping) else None
    except (TypeError, ValueError) as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    return FamilyEntry(
        name=_field(data, "name", str, where),
        subnet=subnet,
        parameters=_count(data, "parameters", where),
        macs_per_second=_count(data, "macs_per_second", where),
        score=score,
        folder=found,
        latency=latency,
    )


def _find_folder(name: str, beside: Path) -> Path | None:
    return next((folder for folder in (beside / name, Path(name)) if folder.is_dir()), None)


def push_family(
    pareto_json: str | Path,
    prefix: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    collection: str | None = None,
    space: str | Path | None = None,
    dry_run: str | Path | None = None,
    overwrite: bool = False,
) -> FamilyResult:
    """Publish the subnets of a `pareto.json`, each in its repository, and link them.

    A supernet that is a folder is published as "PREFIX-supernet", with a table of the subnets in its card. One that
    is on the Hub under the same owner gets the table into its card; another owner's is only linked to. Everything is
    checked before anything is pushed. Running it again is safe: what has not changed is not committed again.

    Args:
        pareto_json: what to publish.
        prefix: "owner/name"; the subnets become "owner/name-27M" and so on.
        private, token, commit_message: as for `push_folder`.
        collection: title of the collection; by default the name in `prefix`.
        space: folder of a static Space to publish as "PREFIX-explorer" beside the models; see
            `lighthubert_hf.explore.write_space`.
        dry_run: a folder to write to instead of uploading, one folder in it for each repository.
        overwrite: whether these may replace folders that hold something else.

    Raises:
        PublishingError: if the Hub refuses or cannot be reached; it says what had been pushed by then.
        ValueError, FileNotFoundError: if the file or a model does not fit.
    """
    _check_prefix(prefix)
    token = clean_token(token)
    pareto = read_pareto(pareto_json)
    local = isinstance(pareto.supernet, Path)
    supernet_id = published_supernet(pareto.supernet, prefix)
    _check_numbers(pareto, Path(pareto_json), token)
    members = _members(pareto, prefix)
    with tempfile.TemporaryDirectory() as extracted:
        parent = Parent.read(pareto.supernet, pareto.revision, token)
        jobs = [
            (folder, member.repo_id, _subnet_facts(pareto, entry, load_facts(folder), parent, supernet_id))
            for entry, member, folder in zip(
                pareto.subnets, members, _folders(pareto, parent, Path(extracted), token), strict=True
            )
        ]
        if local:
            jobs.append((pareto.supernet, supernet_id, replace(load_facts(pareto.supernet), family=members)))
        for folder, repo_id, facts in jobs:
            check_folder(folder, repo_id, card=facts, token=token)
        options = {"private": private, "token": token, "commit_message": commit_message, "overwrite": overwrite}
        results = _push_all(jobs, dry_run, **options)
    result = FamilyResult(tuple(results[: len(members)]), results[-1] if local else None)
    if space is not None:
        result = replace(result, space=_push_space(Path(space), f"{prefix}-explorer", private, token, dry_run))
    if dry_run is not None:
        return result
    linked = None if local else _link(supernet_id, prefix, members, token)
    with one_line_errors(prefix, token):
        supernet = supernet_id if local or linked else None
        address = _collect(prefix, collection, private, token, members, supernet, space is not None)
    return replace(result, supernet_commit=linked, collection=address)


def check_push(prefix: str, token: str | bool | None = None) -> None:
    """What can be known of a later `push_family` before the long work that it ends: its name, and a valid token.

    Raises:
        ValueError: for a prefix that is none.
        PublishingError: if the Hub refuses the token or cannot be reached.
    """
    _check_prefix(prefix)
    with one_line_errors(prefix, token):
        retried(Upload(prefix, token=clean_token(token)).api.whoami)


def published_supernet(supernet: str | Path, prefix: str) -> str:
    """The Hub id of a family's supernet: its own, or that which a folder gets."""
    return f"{prefix}-supernet" if isinstance(supernet, Path) else supernet


def _push_space(
    folder: Path, repo_id: str, private: bool | None, token: str | bool | None, dry_run: str | Path | None
) -> str:
    """Publish a folder as a static Space, in one commit. Returns its address."""
    if dry_run is not None:
        target = Path(dry_run) / repo_id.split("/")[1]
        with replacing_folder(target) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
        return str(target)
    api = Upload(repo_id, token=token).api
    made = {"repo_type": "space", "space_sdk": "static", "private": private, "exist_ok": True}
    with one_line_errors(repo_id, token):
        retried(lambda: api.create_repo(repo_id, **made))
        if private and not retried(lambda: api.space_info(repo_id)).private:
            raise PublishingError(f"{repo_id} exists and is public, but a private push was asked for; not pushed")
        retried(lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="space"))
    return f"{api.endpoint}/spaces/{repo_id}"


def _check_prefix(prefix: str) -> None:
    if not is_hub_id(prefix):
        raise ValueError(f"the prefix must be OWNER/NAME, got {prefix!r}")


def _check_numbers(pareto: Pareto, path: Path, token: str | bool | None) -> None:
    """See that the subnets are the supernet's, and count what the file claims of them."""
    config = load_config(pareto.supernet, pareto.revision, token)
    if getattr(config, "search_space", None) is None:
        raise ValueError(f"{path}: {pareto.supernet} is no supernet (its config has no search_space)")
    for entry in pareto.subnets:
        try:
            counted = {
                "parameters": count_parameters(config, entry.subnet),
                "macs_per_second": macs_per_second(config, entry.subnet),
            }
        except ValueError as error:
            raise ValueError(f"{path}: {entry.name} is no subnet of {pareto.supernet}: {error}") from None
        for name, number in counted.items():
            if getattr(entry, name) != number:
                raise ValueError(
                    f"{path} says {name}={getattr(entry, name):,} of {entry.name}, which has {number:,}; correct it, "
                    "or search again"
                )


def _members(pareto: Pareto, prefix: str) -> tuple[FamilyMember, ...]:
    entries = pareto.subnets
    sizes = size_names([entry.parameters for entry in entries], [entry.subnet.key for entry in entries])
    label = "distillation loss" if pareto.score_name == "loss" else pareto.score_name
    return tuple(
        FamilyMember(f"{prefix}-{size}", entry.parameters, entry.macs_per_second, entry.score, label)
        for size, entry in zip(sizes, entries, strict=True)
    )


def _push_all(jobs: Sequence[tuple[Path, str, CardFacts]], dry_run: str | Path | None, **options) -> list[PushResult]:
    done: list[PushResult] = []
    for folder, repo_id, facts in progress_bar(jobs, "publishing", unit="models"):
        target = None if dry_run is None else Path(dry_run) / repo_id.split("/")[1]
        try:
            done.append(push_folder(folder, repo_id, card=facts, dry_run=target, **options))
        except PublishingError as error:
            pushed = ", ".join(result.repo_id for result in done) or "nothing"
            raise PublishingError(f"{error} (pushed before: {pushed}; run the same command again to go on)") from error
    return done


def _folders(pareto: Pareto, parent: Parent, extracted: Path, token: str | bool | None) -> list[Path]:
    """The folder of every subnet; those that have none are extracted into `extracted`."""
    supernet, folders = None, []
    for entry in pareto.subnets:
        if entry.folder is not None:
            _check_architecture(entry)
            folders.append(entry.folder)
            continue
        if supernet is None:
            supernet = load_supernet(pareto.supernet, pareto.revision, token)
        model = supernet.extract_subnet(entry.subnet)
        folders.append(save_model_folder(model, extracted / entry.subnet.key, processor=parent.processor))
    return folders


def _check_architecture(entry: FamilyEntry) -> None:
    """A folder must hold the subnet whose numbers are about to be claimed for it."""
    path = entry.folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{entry.folder} has no {CONFIG}; extract the subnet {entry.name} again")
    config = read_config(read_object(path))
    if config.model_type == "hubert" and (config.num_hidden_layers, config.hidden_size) != (
        len(entry.subnet.num_attention_heads),
        entry.subnet.hidden_size,
    ):
        held = f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
        raise ValueError(f"{entry.folder} holds a plain HuBERT of {held}, but {entry.name} is {entry.subnet}")
    if config.model_type == "lighthubert" and config.architecture != config.canonical(entry.subnet):
        channels = None if entry.subnet.conv_dim is None else tuple(config.conv_dim)
        held = replace(config.architecture, conv_dim=channels)
        raise ValueError(f"{entry.folder} holds {held}, but {entry.name} is {entry.subnet}")


def _subnet_facts(pareto: Pareto, entry: FamilyEntry, own: CardFacts, parent: Parent, supernet: str) -> CardFacts:
    """What the file says of a subnet, what its folder says, and what it has from its supernet, in this order.

    But a time that was measured, as its folder may say, is better than one that the search predicted.
    """
    measured = own.latency is not None and not own.latency.predicted
    return completed_facts(
        own,
        parent,
        subnet=entry.subnet,
        parameters=entry.parameters,
        macs_per_second=entry.macs_per_second,
        loss=entry.score if pareto.score_name == "loss" else own.loss,
        latency=own.latency if measured else entry.latency or own.latency,
        supernet=supernet,
        revision=pareto.revision or own.revision,
    )


def _link(supernet: str, prefix: str, members: Sequence[FamilyMember], token: str | bool | None) -> CommitInfo | None:
    """Put the table of subnets into the card of a supernet on the Hub, if it belongs to the same owner."""
    if supernet.split("/")[0] != prefix.split("/")[0]:
        return None
    upload = Upload(supernet, token=token, commit_message="List the published subnets")
    with one_line_errors(supernet, token), tempfile.TemporaryDirectory() as folder:

        def change(remote: frozenset[str]) -> list[CommitOperationAdd]:
            text = ""
            if README in remote:
                path = retried(lambda: upload.api.hf_hub_download(supernet, README, local_dir=folder))
                text = Path(path).read_text(encoding="utf-8")
            return [CommitOperationAdd(README, with_family(text, members).encode())]

        return upload.commit(change)


def _collect(
    prefix: str,
    title: str | None,
    private: bool | None,
    token: str | bool | None,
    members: Sequence[FamilyMember],
    supernet: str | None,
    explorer: bool,
) -> str:
    """Put everything into one collection, which is made if there is none of this title. Returns its address."""
    owner, name = prefix.split("/")
    api = Upload(prefix, token=token).api
    collection = retried(
        lambda: api.create_collection(title or name, namespace=owner, private=bool(private), exists_ok=True)
    )
    notes = {
        member.repo_id: f"{human(member.parameters)} parameters, {human(member.macs_per_second)} multiply-accumulates "
        f"per second of audio, {member.score_name} {member.score:.4g}"
        for member in members
    }
    if supernet:
        notes[supernet] = "The supernet that the others were cut from"
    for repo_id, note in notes.items():
        collection = _put(api, collection, repo_id, note)
    if explorer:
        collection = _put(api, collection, f"{prefix}-explorer", "All subnets that were scored, to explore", "space")
    return collection.url


def _put(
    api: HfApi, collection: Collection, repo_id: str, note: str, kind: Literal["model", "space"] = "model"
) -> Any:
    """Add a model or a Space to a collection, or correct its note if it is there already."""
    present = next((item for item in collection.items if item.item_id == repo_id), None)
    if present is None:
        return retried(lambda: api.add_collection_item(collection.slug, repo_id, kind, note=note, exists_ok=True))
    if present.note != note:
        retried(lambda: api.update_collection_item(collection.slug, present.item_object_id, note=note))
    return collection
