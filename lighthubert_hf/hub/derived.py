"""What the card of a model says that was made out of another: here alone it is decided what holds of both.

A subnet, a fine-tuned model, a plain HuBERT and a converted supernet keep what is known of where their weights come
from: teacher, data, languages, licence, supernet, the checkpoint that was converted. They do not keep numbers that
were measured on another model.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from lighthubert_hf.absent import absent
from lighthubert_hf.loading import load_feature_extractor
from lighthubert_hf.model.search_space import Subnet

from .card import FACTS_FILE, CardFacts
from .folder import PREPROCESSOR, PROCESSOR

logger = logging.getLogger(__name__)

# What is true of a model and of all that is made out of its weights.
_INHERITED = (
    "teacher",
    "datasets",
    "languages",
    "license",
    "supernet",
    "revision",
    "subnet",
    "converted_from",
    "converted_revision",
)


@dataclass(frozen=True)
class Parent:
    """A model that another is made out of.

    Args:
        name: its folder or Hub id; `None` if it has none.
        revision: its commit on the Hub, if it is known.
        facts: all that its card says.
        processor: its feature extractor; `None` if there is none, for which the default stands.
    """

    name: str | None = None
    revision: str | None = None
    facts: CardFacts = field(default_factory=CardFacts)
    processor: Any = None

    @classmethod
    def read(
        cls,
        name: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        *,
        required: bool = True,
    ) -> "Parent":
        """The card and the feature extractor beside a model.

        Args:
            name: folder or Hub id.
            revision: of a model on the Hub; better the commit than a branch.
            required: whether it is an error that a model on the Hub cannot be reached. Otherwise that is said in the
                log, and nothing is inherited.

        Raises:
            FileNotFoundError: if the Hub refuses or cannot be reached, and `required`.
        """
        name = str(name)
        try:
            path = _file_of(name, FACTS_FILE, revision, token)
            prepared = any(_file_of(name, file, revision, token) for file in (PREPROCESSOR, PROCESSOR))
        except OSError as error:
            if required:
                raise absent("model", name, error, revision=revision) from None
            reason = " ".join(str(error).split())
            logger.warning("the card of %s cannot be read, so nothing is taken over from it: %s", name, reason)
            return cls(name, revision)
        processor = load_feature_extractor(name, revision, token) if prepared else None
        return cls(name, revision, CardFacts.load(path) if path else CardFacts(), processor)


def inherited(facts: CardFacts) -> CardFacts:
    """What stays true of a model made out of the one with these facts: where it comes from, no number."""
    return CardFacts(**{name: getattr(facts, name) for name in _INHERITED})


def subnet_facts(parent: Parent, subnet: Subnet | None = None, **known: Any) -> CardFacts:
    """The facts of a subnet cut out of the supernet `parent`.

    Args:
        subnet: its architecture; by default what its config says.
        known: what is known of the subnet itself, fields of [`CardFacts`].
    """
    own = {"supernet": parent.name, "revision": parent.revision, "subnet": subnet}
    return replace(inherited(parent.facts), **own | known)


def retrained_facts(parent: Parent, **known: Any) -> CardFacts:
    """The facts of a model that was trained further from `parent`, of the same architecture."""
    return replace(inherited(parent.facts), **known)


def same_function_facts(facts: CardFacts, **known: Any) -> CardFacts:
    """The facts of a model that computes the same as the one with these facts, stored or arranged otherwise.

    Quality is that of the function. Parameters, operations and time are those of the form.
    """
    quality = {"loss": facts.loss, "loss_data": facts.loss_data, "evaluations": facts.evaluations}
    return replace(inherited(facts), **quality | known)


def completed_facts(own: CardFacts, parent: Parent, **known: Any) -> CardFacts:
    """What a subnet's own card says, with what it lacks taken over from its supernet.

    Args:
        known: what is known better than the subnet's card does.
    """
    taken = inherited(parent.facts)
    missing = {name: getattr(taken, name) for name in _INHERITED if not getattr(own, name)}
    return replace(own, **missing | known)


def _file_of(name: str, file: str, revision: str | None, token: str | bool | None) -> str | None:
    return cached_file(name, file, revision=revision, token=token, _raise_exceptions_for_missing_entries=False)
