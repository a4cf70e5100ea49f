"""How exact single precision has to be: as exact as plain modules are, on the machine that the test runs on.

Two computations of the same thing in float32 differ by what each rounds, and that is up to the processor: over how
many lanes and threads a sum is split, whether a multiply-add rounds once or twice, which kernel a library picks for a
shape. An absolute bound on their difference holds on the machine it was found on. So each is compared with the same
computation in float64, whose own rounding (1e-16) is nothing beside theirs (6e-8), and what is bounded is ours by the
other's:

    error(ours) <= FACTOR * error(plain) + FLOOR * eps * size(exact)

*Error and size are root mean squares over all elements.* A maximum belongs to one element and to luck; a mean over
many is a property of the algorithms, and their ratio hardly moves. It still shows a single wrong element: among
10,000 that are right to 1e-6, one that is wrong by 1e-3.

*Why it holds anywhere.* Both sides sum the same products of the same numbers. In which order changes the constant
before eps, for both, and what the layers behind make of an error (random weights amplify it, up to a hundred times)
they make of both. `FACTOR` is for orders that differ: a sum in blocks against one from first to last, a transform
against a direct sum.

*The floor* is for plain modules that are exact by chance, as sums of few terms are: a few roundings of numbers of the
exact result's size. Of gradients, the size is the largest of all parameters in the same pass. Where a gradient is
zero by mathematics (a bias before a norm that takes the mean off, a key's bias before a softmax), what comes out on
either side is rounding of the terms that cancel, and those are of the size of the other gradients.

The exact result must come from the plain side. A plain result that is further from it than rounding can bring it
means that the two are not the same computation, and is an error of the test.
"""

import copy
import os
from collections.abc import Mapping, Sequence

import torch
from torch import nn

Tensors = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]

# Over all levels of `make test-portable` no test has used half of its bound (column "bound used").
FACTOR = 4
FLOOR = 16
# Rounding, amplified: what plain modules are from the exact result, in eps of their type. More is another computation.
PLAIN_LIMIT = 2**13


def in_double(module: nn.Module) -> nn.Module:
    """A copy of `module` that computes in float64."""
    return copy.deepcopy(module).double()


def assert_as_exact(
    found: Tensors,
    plain: Tensors,
    exact: Tensors,
    factor: float = FACTOR,
    floor: float = FLOOR,
    plain_limit: float = PLAIN_LIMIT,
) -> None:
    """Assert that `found` is hardly further from `exact` than `plain` is, tensor by tensor.

    Args:
        found: what is tested.
        plain: the same by plain modules, in the same precision.
        exact: the same by plain modules in float64.
        factor, floor, plain_limit: see above; a test that passes others says why.
    """
    found, plain, exact = map(_named, (found, plain, exact))
    sizes = {name: rms(tensor) for name, tensor in exact.items()}
    _assert_as_exact(found, plain, exact, sizes, factor, floor, plain_limit)


def assert_gradients_as_exact(
    found: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]
) -> None:
    """As `assert_as_exact`, of all gradients of one backward pass by the names of their parameters."""
    size = max(map(rms, exact.values()))
    _assert_as_exact(found, plain, exact, dict.fromkeys(exact, size), FACTOR, FLOOR, PLAIN_LIMIT)


def assert_rounded_alike(found: torch.Tensor, wanted: torch.Tensor, terms: int, size: float | None = None) -> None:
    """Assert that two computations of sums of up to `terms` products, in the same precision, differ by rounding only.

    For a single step worked out by hand. Each partial sum is rounded by at most half an eps of itself, so in whatever
    order the terms come each side is off by at most `terms / 2` eps of `size`, and mostly by the square root of that.

    Args:
        size: the largest sum of magnitudes, of which no partial sum is larger. By default the largest result, which
            will do among many.
    """
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    difference = (found.double() - wanted.double()).abs().max().item()
    size = wanted.double().abs().max().item() if size is None else size
    bound = terms * torch.finfo(found.dtype).eps * size
    _note(difference, bound)
    assert difference <= bound, f"a difference of {difference:.3g}, {terms} roundings are {bound:.3g}"


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the gradients there are, by the names of their parameters."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def rms(tensor: torch.Tensor) -> float:
    return tensor.detach().double().square().mean().sqrt().item() if tensor.numel() else 0.0


def _note(error: float, bound: float) -> None:
    """Where `PRECISION_LOG` names a file, add a line of how much of the bound was used, and by which test."""
    if path := os.environ.get("PRECISION_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{error / bound if bound else 0.0:.4f} {os.environ.get('PYTEST_CURRENT_TEST')}\n")


def _named(tensors: Tensors) -> Mapping[str, torch.Tensor]:
    if isinstance(tensors, torch.Tensor):
        return {"the output": tensors}
    return tensors if isinstance(tensors, Mapping) else {f"output {i}": tensor for i, tensor in enumerate(tensors)}


def _assert_as_exact(found, plain, exact, sizes: Mapping[str, float], factor, floor, plain_limit) -> None:
    assert found.keys() == plain.keys() == exact.keys()
    for name, wanted in exact.items():
        assert wanted.dtype == torch.float64, f"{name}: the exact result is in {wanted.dtype}"
        ours, theirs = found[name].detach(), plain[name].detach()
        assert ours.shape == theirs.shape == wanted.shape, f"{name}: {ours.shape}, {theirs.shape}, {wanted.shape}"
        assert ours.dtype == theirs.dtype
        error, usual = rms(ours.double() - wanted), rms(theirs.double() - wanted)
        size, eps = sizes[name], torch.finfo(ours.dtype).eps
        assert usual <= plain_limit * eps * size, (
            f"{name}: plain modules are off by {usual:.3g} of {size:.3g}, more than rounding can be: "
            "they and the exact result are not the same computation"
        )
        bound = factor * usual + floor * eps * size
        _note(error, bound)
        assert error <= bound, (
            f"{name}: off by {error:.3g} (of {size:.3g}), plain modules by {usual:.3g}; at most {bound:.3g} will do"
        )
