"""The stopwatches: what is counted, in which order things run, that nothing is left behind."""

import gc

import pytest
import torch
from torch import nn

from lighthubert_hf.costs.measuring import AllocationTracker, alternate, describe_machine, peak_memory, time_modules

CPU = torch.device("cpu")
KILO = 4 * 1000  # bytes of 1000 floats


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 10)).eval()


def test_tracker_counts_tensors_as_long_as_they_live():
    before = torch.zeros(5000)
    with AllocationTracker() as tracker:
        one = torch.zeros(1000)
        assert tracker.live == KILO
        view, inside = one[:10], one.add_(1)  # no memory of their own
        two = one + before[:1000]
        assert tracker.live == 2 * KILO
        del one, view, inside
        gc.collect()
        assert tracker.live == KILO
        del two
        gc.collect()
        assert (tracker.live, tracker.peak) == (0, 2 * KILO)
        tracker.reset_peak()
        torch.zeros(1000)
        assert tracker.peak == KILO


@torch.inference_mode()
def test_peak_memory_by_module(model):
    audio = torch.randn(100, 10)
    peaks = peak_memory(lambda: model(audio), [("wide", model[0]), ("relu", model[1]), ("narrow", model[2])], CPU)
    assert peaks["wide"] == 10 * KILO
    assert peaks["relu"] == peaks[""] == 20 * KILO
    assert peaks["narrow"] == 11 * KILO
    assert peak_memory(lambda: model(audio), [], CPU) == {"": 20 * KILO}


@torch.inference_mode()
def test_times_of_modules_lie_within_the_whole(model):
    audio = torch.randn(100, 10)
    times = time_modules(lambda: model(audio), list(model.named_children()), CPU)
    assert set(times) == {"", "0", "1", "2"}
    assert all(value > 0 for value in times.values())
    assert times["0"] + times["1"] + times["2"] <= times[""]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error(model):
    with pytest.raises(RuntimeError):
        time_modules(lambda: model(torch.zeros(1, 3)), list(model.named_children()), CPU)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_contenders_alternate():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, repeats=2)
    assert order == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


def test_machine_names_what_a_time_depends_on():
    machine = describe_machine()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["device"]
