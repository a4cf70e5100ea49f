"""Stopwatches: time and memory of a model's modules during a forward pass, and what this machine can do at most."""

import os
import platform
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATMUL_SHAPE = (8000, 1536, 512)


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a timing depends on besides the code; belongs beside every reported time."""
    device = torch.device(device)
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    if device.type != "cpu":
        machine["device_type"] = device.type
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def stopwatch(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds `run` takes."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def alternate(contenders: dict[Any, Callable[[], Any]], device: torch.device, repeats: int) -> dict[Any, float]:
    """Median milliseconds of each contender, all run in turn `repeats` times after one warm-up round."""
    for run in contenders.values():
        run()
    times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(stopwatch(run, device))
    return {name: median(values) for name, values in times.items()}


def matmul_contender(device: torch.device, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A matrix product of a size at which a machine shows its best; `MATMUL_FLOP` operations."""
    rows, inner, columns = MATMUL_SHAPE
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    return lambda: a @ b


MATMUL_FLOP = 2 * MATMUL_SHAPE[0] * MATMUL_SHAPE[1] * MATMUL_SHAPE[2]


@contextmanager
def hooked(
    modules: Iterable[tuple[str, nn.Module]], before: Callable[[str], None], after: Callable[[str], None]
) -> Iterator[None]:
    """Call `before(name)` and `after(name)` around the forward of every one of `modules`."""
    handles = []
    for name, module in modules:
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def time_modules(
    run: Callable[[], Any], modules: Iterable[tuple[str, nn.Module]], device: torch.device
) -> dict[str, float]:
    """Milliseconds of one `run()` inside each of `modules`, and in all under the name ""."""
    clock = _EventClock(device) if device.type == "cuda" else _HostClock(device)
    with hooked(modules, clock.start, clock.stop):
        clock.start("")
        run()
        clock.stop("")
    return clock.read()


class _HostClock:
    def __init__(self, device: torch.device):
        self._device, self._starts, self._times = device, {}, {}

    def start(self, name: str) -> None:
        synchronize(self._device)
        self._starts[name] = time.perf_counter()

    def stop(self, name: str) -> None:
        synchronize(self._device)
        self._times[name] = 1e3 * (time.perf_counter() - self._starts[name])

    def read(self) -> dict[str, float]:
        return self._times


class _EventClock:
    """Reads the device's own clock, so that host and device go on working side by side."""

    def __init__(self, device: torch.device):
        self._device, self._events = device, {}

    def start(self, name: str) -> None:
        self._events[name] = [self._record()]

    def stop(self, name: str) -> None:
        self._events[name].append(self._record())

    def _record(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self) -> dict[str, float]:
        synchronize(self._device)
        return {name: start.elapsed_time(end) for name, (start, end) in self._events.items()}


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of the tensors that operators create, as long as they live.

    What a kernel allocates and frees inside itself does not show, nor do weights that oneDNN packs.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet()

    def reset_peak(self) -> None:
        self.peak = self.live

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata in inputs or storage in self._known:
                continue
            self._known.add(storage)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Of the tensors in `tree`."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf.untyped_storage()


def peak_memory(
    run: Callable[[], Any], modules: Iterable[tuple[str, nn.Module]], device: torch.device
) -> dict[str, int]:
    """Most bytes of activations alive at once during `run()`, inside each of `modules` and in all under the name "".

    On CUDA what the allocator reports; elsewhere what `AllocationTracker` counts. Modules must not be nested.
    """
    if device.type == "cuda":
        synchronize(device)
        start = torch.cuda.memory_allocated(device)

        def reset():
            torch.cuda.reset_peak_memory_stats(device)

        return _peaks(run, modules, reset, lambda: torch.cuda.max_memory_allocated(device) - start)
    with AllocationTracker() as tracker:
        return _peaks(run, modules, tracker.reset_peak, lambda: tracker.peak)


def _peaks(run, modules, reset: Callable[[], None], read: Callable[[], int]) -> dict[str, int]:
    peaks = {"": 0}

    def before(name: str) -> None:
        peaks[""] = max(peaks[""], read())
        reset()

    def after(name: str) -> None:
        peaks[name] = read()
        before(name)

    reset()
    with hooked(modules, before, after):
        run()
    before("")
    return peaks
