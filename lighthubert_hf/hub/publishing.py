"""From a supernet to a model folder, and from a model or a folder to the Hub."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from huggingface_hub.errors import StrictDataclassError

from lighthubert_hf.absent import absent
from lighthubert_hf.costs.profiling import Profile
from lighthubert_hf.loading import check_loads, load
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.subnets import choose_subnet
from lighthubert_hf.units.files import check_current

from .card import CardFacts, Latency, is_repo_name
from .contents import check_no_secrets, stage
from .derived import Parent, subnet_facts
from .folder import (
    complete_folder,
    save_model_folder,
    update_facts,
    write_model,
)
from .output import check_not_source, check_output, written_beside
from .upload import PublishingError, Upload, clean_token, file_names, secret


@dataclass(frozen=True)
class PushResult:
    """What a push did, or in a dry run would do.

    Attributes:
        repo_id: the repository.
        files: what was committed, or would be.
        left_out: files of the folder that are not published, with the reasons.
        commit: the commit on the Hub; `None` after a dry run.
        folder: where a dry run wrote the files.
    """

    repo_id: str
    files: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    commit: CommitInfo | None = None
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "repo_id": self.repo_id,
            "files": list(self.files),
            "left_out": dict(self.left_out),
            "commit": self.commit and self.commit.oid,
            "url": self.commit and self.commit.commit_url,
            "folder": self.folder and str(self.folder),
        }

    def __str__(self) -> str:
        where = f"{self.repo_id}: {len(self.files)} files"
        done = f"{where} in {self.commit.commit_url}" if self.commit else f"{where} would be uploaded: {self.folder}"
        return "\n".join([done, *(f"  left out: {name} ({reason})" for name, reason in self.left_out.items())])


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    card: CardFacts | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    dry_run: str | Path | None = None,
    include: Sequence[str] = (),
    overwrite: bool = False,
) -> PushResult:
    """Publish a model folder in one commit, after adding what it lacks (see `lighthubert_hf.hub.folder`).

    The folder itself stays as it is. Its card is rendered again with the repository's name, unless it was edited.

    Args:
        folder: a folder that `save_model_folder` or `save_pretrained` wrote.
        repo_id: "owner/name", or "name" for one's own.
        card: facts for the card; by default those in the folder.
        private: whether a new repository is private. An existing one keeps what it is; if that is public and `private`
            is asked for, nothing is pushed.
        token: access token; by default the one of `hf auth login` or `HF_TOKEN`.
        revision: branch, made from the main one if there is none of this name.
        create_pr: open a pull request instead of committing.
        dry_run: a folder to write exactly what would be uploaded to, instead of uploading. Needs no network.
        include: patterns of names to publish besides what belongs to a model.
        overwrite: whether `dry_run` may replace a folder that holds something else.

    Raises:
        PublishingError: if the Hub refuses or cannot be reached.
        ValueError, FileNotFoundError: if the folder holds no complete model, a link, or an access token.
    """
    token = clean_token(token)
    _check_repo_id(repo_id, token)
    if dry_run is not None:
        with written_beside(dry_run, source=folder, overwrite=overwrite, record=False) as target:
            left_out, _ = prepare(folder, target, repo_id, card=card, token=token, link=False, include=include)
            return PushResult(repo_id, file_names(target), left_out, folder=Path(dry_run))
    upload = Upload(repo_id, private, token, revision, commit_message, create_pr)
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        options = {"card": card, "token": token, "include": include}
        check_still_there = _same_folder(folder)
        left_out, defaults = prepare(folder, target, upload.full_id(), link=True, **options)
        commit = upload.push(target, defaults, check=check_still_there)
        return PushResult(upload.full_id(), file_names(target), left_out, commit)


def _same_folder(folder: str | Path) -> Callable[[], None]:
    """A function that raises if another folder has taken the place of this one meanwhile, as a command that writes one
    does: some files would be of the old one, and some of the new."""
    before = os.stat(folder) if os.path.isdir(folder) else None

    def check() -> None:
        if before is not None and not (os.path.isdir(folder) and os.path.samestat(before, os.stat(folder))):
            raise PublishingError(f"{folder} was replaced while it was read; nothing was published, push it again")

    return check


def check_folder(
    folder: str | Path, repo_id: str, *, card: CardFacts | None = None, token: str | bool | None = None
) -> None:
    """Raise what `push_folder` would raise on account of the folder, without pushing."""
    with tempfile.TemporaryDirectory() as target:
        prepare(folder, Path(target), repo_id, card=card, token=token, link=True)


def _check_repo_id(repo_id: str, token: str | bool | None) -> None:
    """Raise a PublishingError for what cannot be the name of a repository; the Hub would refuse it after the work."""
    if not is_repo_name(repo_id):
        known = secret(token)
        shown = "a name with an access token in it" if "hf_" in repo_id or (known and known in repo_id) else repo_id
        raise PublishingError(
            f"{shown!r} cannot be a repository; write OWNER/NAME, of letters, digits and -, _ or . between them, "
            "the name at most 96 of them"
        )


def prepare(
    folder: str | Path,
    target: Path,
    repo_id: str,
    *,
    card: CardFacts | None,
    token: str | bool | None,
    link: bool,
    include: Sequence[str] = (),
) -> tuple[dict[str, str], frozenset[str]]:
    """Put what is to be uploaded into `target`. Returns what is left out, and which files are only defaults."""
    check_still_there = _same_folder(folder)
    try:
        left_out = stage(folder, target, link=link, include=include)
        check_no_secrets(Path(folder), secret(token))  # what is left out, too: whoever keeps one there should know
        defaults = complete_folder(target, card, repo_id)
        check_loads(folder)
        check_current(folder)
    except (ValueError, FileNotFoundError, StrictDataclassError) as error:  # of the copy, whose name says nothing
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        message = " ".join(str(error).split()).replace(str(target), str(folder))
        raise kind(message if str(folder) in message else f"{folder}: {message}") from None
    check_no_secrets(target, secret(token))
    check_still_there()
    return left_out, defaults


def push_model(
    model,
    repo_id: str,
    *,
    card: CardFacts | None = None,
    processor=None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """What `model.push_to_hub` does: `transformers.PreTrainedModel.push_to_hub`, with the complete folder.

    Args:
        card: facts for the card. The card is rendered anew, since another model's numbers would not be this one's.
        processor: feature extractor or processor to publish with it. Without it, one that is already in the
            repository is kept, and where there is none the default feature extractor is added.
        tags: more tags for the card, besides those of `model.add_model_tags`.

    Raises:
        PublishingError: if the Hub refuses or cannot be reached.
    """
    token = clean_token(token)
    facts = card or CardFacts()
    facts = replace(facts, tags=(*facts.tags, *(model.model_tags or ()), *(tags or ())))
    with tempfile.TemporaryDirectory() as target:
        write_model(model, Path(target), processor, max_shard_size)
        upload = Upload(repo_id, private, token, revision, commit_message, create_pr, commit_description)
        defaults = complete_folder(Path(target), facts, upload.full_id())
        check_no_secrets(Path(target), secret(token))
        return upload.push(Path(target), defaults)


def extract_to_folder(
    supernet: str | Path,
    folder: str | Path,
    *,
    subnet: str | Path | Subnet = "default",
    plain_hubert: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Cut a subnet out of a supernet and save it as a complete model folder.

    Its card has from the supernet's what is true of both: teacher, data, licence.

    Args:
        supernet: folder or Hub id.
        folder: where to.
        subnet: "default", "smallest", "largest", a JSON file of a `Subnet`, or a `Subnet`.
        plain_hubert: save a HuBERT of transformers instead of a LightHuBERT.
        revision: of a supernet on the Hub. The card names the commit that it was.
        overwrite: replace another model in `folder`. One extracted from the same supernet is replaced in any case,
            unless it was changed since; the supernet itself never is.

    Raises:
        FileNotFoundError: if there is no such supernet, or no such JSON file.
        ValueError: if it is no supernet, the subnet does not fit, or no plain HuBERT computes the same.
    """
    check_not_source(folder, supernet)
    source = load_supernet(supernet, revision, token)
    chosen = choose_subnet(subnet, source.config)
    model = source.extract_subnet(chosen)
    commit = getattr(source.config, "_commit_hash", None) or revision
    origin = f"{supernet}@{commit}" if commit else supernet
    check_output(Path(folder), source=origin, by="extract", overwrite=overwrite)
    parent = Parent.read(supernet, commit, token)
    model = model.to_hubert() if plain_hubert else model
    made = {"source": origin, "by": "extract", "overwrite": overwrite}
    return save_model_folder(model, folder, card=subnet_facts(parent, chosen), processor=parent.processor, **made)


def record_latency(folder: str | Path, measured: Profile) -> None:
    """Put a time that was measured on the card of a model folder: the one of the longest audio, by itself.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is a supernet, whose card is not that of one of its subnets.
    """
    folder = Path(folder)
    check_latency_card(folder, of_subnet=measured.subnet is not None)
    row = max(measured.rows, key=lambda row: (-row.batch, row.seconds))
    latency = Latency(
        1000 * row.real_time_factor,
        machine=f"{measured.machine['device']}, {measured.machine['threads']} threads",
        command=f"lighthubert profile MODEL --seconds {row.seconds:g} --batch {row.batch}",
    )
    update_facts(folder, lambda facts: replace(facts, latency=latency))


def check_latency_card(folder: str | Path, of_subnet: bool) -> None:
    """Raise what `record_latency` would raise: before the measuring rather than after.

    Args:
        of_subnet: Whether the model is a supernet, of which a subnet is measured.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"only a folder's card can be updated, and {absent('model folder', folder)}")
    if of_subnet:
        raise ValueError(f"{folder} is a supernet, of which one subnet is measured; extract that and measure it")


def load_supernet(supernet: str | Path, revision: str | None = None, token: str | bool | None = None):
    """The LightHubertModel of a supernet, in evaluation mode.

    Raises:
        FileNotFoundError: if it is in no folder and not on the Hub.
        ValueError: if it is static, or its weights are not what they should be (see `lighthubert_hf.loading`).
    """
    from lighthubert_hf.model.modeling_lighthubert import LightHubertModel

    model = load(LightHubertModel, supernet, revision=revision, token=token).model
    if model.search_space is None:
        raise ValueError(f"{supernet} is static (its config has no search_space); give the supernet it is from")
    return model
