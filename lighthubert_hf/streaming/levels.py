"""Normalisation of audio whose end nobody has heard: by statistics given beforehand, or by those so far."""

import torch

# As transformers' Wav2Vec2FeatureExtractor adds it to the variance.
EPSILON = 1e-7


class RunningLevel:
    """Mean and variance of all samples so far, in float64.

    Each block is normalised by the statistics of everything up to its own end, so that nothing is waited for. Merged
    by the formula of Chan, Golub and LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances*, 1979.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def variance(self) -> float:
        return self._squares / max(self.count, 1)

    def update(self, samples: torch.Tensor) -> None:
        """Take note of `samples`, `(samples,)`."""
        if not len(samples):
            return
        values = samples.double()
        total, mean = self.count + len(values), values.mean().item()
        difference = mean - self.mean
        own = (values - mean).square().sum().item()
        self._squares += own + difference**2 * self.count * len(values) / total
        self.mean += difference * len(values) / total
        self.count = total

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """`samples`, noted and normalised."""
        self.update(samples)
        return scaled(samples, self.mean, self.variance)


def scaled(samples: torch.Tensor, mean: float, variance: float) -> torch.Tensor:
    """Samples of that mean and variance with zero mean and unit variance, as the feature extractor makes them."""
    return (samples - mean) / (variance + EPSILON) ** 0.5
