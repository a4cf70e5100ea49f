"""An average of the weights along the last steps: often a better model than the last one, at no cost in training."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from .recipe import AveragingSection
from .step import DistillationModel


class WeightAverage:
    r"""Takes in student and objective from time to time in the last `share` of all steps.

    - `uniform`: the mean of all that is taken in (Izmailov et al. 2018, https://huggingface.co/papers/1803.05407;
      latest weights only, as in Kaddour 2022, https://huggingface.co/papers/2209.14981);
    - `ema`: \(\bar w \leftarrow d \bar w + (1 - d) w\), which begins with the first weights taken in.

    The last step's weights are always among them. Nothing is held before the first.
    """

    def __init__(self, settings: AveragingSection, num_steps: int):
        self.settings, self.num_steps = settings, num_steps
        self._average: AveragedModel | None = None

    def takes_in(self, step: int) -> bool:
        """Whether the weights after `step` steps count."""
        left = self.num_steps - step
        return left < round(self.settings.share * self.num_steps) and left % self.settings.every == 0

    def after_step(self, step: int, model: DistillationModel) -> None:
        """`step`: steps done."""
        if not self.takes_in(step):
            return
        trained = _trained(model)
        if self._average is None:
            self._average = self._new(trained)
        self._average.update_parameters(trained)

    def model(self, model: DistillationModel) -> DistillationModel:
        """`model` with averaged weights in student and objective; itself as long as there is no average."""
        if self._average is None:
            return model
        averaged = copy.copy(model)
        averaged.student, averaged.objective = self._average.module["student"], self._average.module["objective"]
        return averaged

    def state(self) -> dict[str, torch.Tensor]:
        """What `restore` takes; empty before the first weights."""
        if self._average is None:
            return {}
        parameters = {name: tensor.detach() for name, tensor in self._average.module.named_parameters()}
        return parameters | {"count": self._average.n_averaged}

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor], model: DistillationModel) -> None:
        """Go on from the `state` of an earlier life of the run."""
        if not state:
            return
        self._average = self._new(_trained(model))
        self._average.n_averaged.copy_(state["count"])
        for name, parameter in self._average.module.named_parameters():
            parameter.copy_(state[name])

    def _new(self, trained: nn.ModuleDict) -> AveragedModel:
        settings = self.settings
        function = get_ema_multi_avg_fn(settings.decay) if settings.kind == "ema" else get_swa_multi_avg_fn()
        return AveragedModel(trained, multi_avg_fn=function)


def _trained(model: DistillationModel) -> nn.ModuleDict:
    return nn.ModuleDict({"student": model.student, "objective": model.objective})
