"""Distillation objectives, one per file. `make_objective` builds the one a recipe names."""

from .armhubert import ArmHubertObjective
from .base import FrameLoss, Objective
from .deep_targets import DeepTargets, DeepTargetsFirst, DeepTargetsSection
from .distilhubert import DistilHubertObjective
from .dphubert import DPHubertObjective
from .front_end import FrontEndObjective
from .lighthubert import LightHubertObjective

__all__ = [
    "ArmHubertObjective",
    "DPHubertObjective",
    "DeepTargets",
    "DeepTargetsFirst",
    "DistilHubertObjective",
    "FrameLoss",
    "FrontEndObjective",
    "LightHubertObjective",
    "Objective",
    "make_objective",
]


def make_objective(
    settings,
    teacher_config,
    student_config,
    deep_targets: DeepTargetsSection | None = None,
    num_steps: int = 0,
) -> Objective:
    """The objective of a recipe's section `objective` for a teacher and a student of the given configs.

    Heads are initialised from the global random state.

    Args:
        deep_targets: The recipe's section of that name.
        num_steps: Of the run, for `deep_targets`, which are there in a share of them.
    """
    teacher_sizes = (teacher_config.num_hidden_layers, teacher_config.hidden_size)
    student_sizes = (student_config.num_hidden_layers, student_config.hidden_size)
    if settings.name == "front_end":
        return FrontEndObjective()
    if settings.name == "lighthubert":
        objective = LightHubertObjective(settings, teacher_sizes[0])
        if deep_targets is None:
            return objective
        deep = DeepTargets(deep_targets, objective, teacher_sizes, student_sizes)
        return DeepTargetsFirst(deep, round(deep_targets.share * num_steps))
    if settings.name == "distilhubert":
        return DistilHubertObjective(settings, teacher_sizes, student_sizes[1])
    classes = {"dphubert": DPHubertObjective, "armhubert": ArmHubertObjective}
    return classes[settings.name](settings, teacher_sizes, student_sizes)
