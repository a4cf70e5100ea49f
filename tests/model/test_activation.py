"""Threads that share a model, and what happens where one activates another subnet."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lighthubert_hf import LightHubertForCTC, LightHubertForSequenceClassification, LightHubertModel, Subnet
from lighthubert_hf.model import modeling_lighthubert

from ..heads import prediction

UNEQUAL = Subnet(48, (1, 2, 4), (96, 96, 96))


def output(out) -> torch.Tensor:
    return out.last_hidden_state if "last_hidden_state" in out else prediction(out)


@torch.no_grad()
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LightHubertModel, {}),
        (LightHubertForCTC, {}),
        (LightHubertForSequenceClassification, {"use_weighted_layer_sum": True}),
    ],
)
def test_no_output_is_a_mixture(make_model, cls, options, waveforms):
    """Three threads run forward, two activate subnets meanwhile."""
    model, waveforms = make_model(cls, **options), waveforms[:1]
    space = model.search_space
    subnets = [space.smallest(), space.largest(), UNEQUAL]
    wanted = []
    for subnet in subnets:
        model.set_active_subnet(subnet)
        wanted.append(output(model(waveforms)))
    done, counts = threading.Event(), {"right": 0, "refused": 0}

    def activate(turn: int) -> None:
        while not done.is_set():
            turn += 1
            model.set_active_subnet(subnets[turn % 3])
            time.sleep(0.002 * (turn % 4))

    @torch.no_grad()
    def run(_) -> None:
        try:
            found = output(model(waveforms))
        except RuntimeError as error:
            if "active subnet was changed while forward ran" not in str(error):
                raise
            counts["refused"] += 1
            return
        assert any(found.shape == one.shape and torch.equal(found, one) for one in wanted)
        counts["right"] += 1

    with ThreadPoolExecutor(5) as pool:
        activating = [pool.submit(activate, turn) for turn in range(2)]
        try:
            list(pool.map(run, range(200)))
        finally:
            done.set()
        for future in activating:
            future.result()
    assert counts["refused"] > 0 and counts["right"] + counts["refused"] == 200
    model.set_active_subnet(UNEQUAL)
    assert torch.equal(output(model(waveforms)), wanted[2])


@torch.no_grad()
def test_a_forward_during_which_a_subnet_was_activated_has_no_output(tiny_supernet, waveforms):
    other = tiny_supernet.search_space.smallest()
    layer = tiny_supernet.encoder.layers[0]
    handle = layer.register_forward_hook(lambda *_: tiny_supernet.set_active_subnet(other))
    for call in (
        lambda: tiny_supernet(waveforms),
        lambda: tiny_supernet.encode(tiny_supernet.extract_features(waveforms)),
    ):
        tiny_supernet.set_active_subnet(tiny_supernet.search_space.largest())
        with pytest.raises(RuntimeError, match="extract_subnet gives one"):
            call()
    tiny_supernet(waveforms)  # the same subnet again changes nothing
    handle.remove()


@torch.no_grad()
def test_many_threads_run_one_model(make_model):
    model = make_model(LightHubertModel)
    clips = [torch.randn(1, 1000 + 100 * (index % 7)) for index in range(48)]
    wanted = [model(clip).last_hidden_state for clip in clips]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(torch.no_grad()(lambda clip: model(clip).last_hidden_state), clips))
    assert all(map(torch.equal, found, wanted))


@torch.no_grad()
def test_extracting_leaves_other_threads_alone(tiny_supernet, waveforms, monkeypatch):
    tiny_supernet.set_active_subnet(UNEQUAL)
    wanted, seen = tiny_supernet(waveforms).last_hidden_state, []
    check = type(tiny_supernet)._set_active

    def watch(self, subnet):  # wherever anything is activated, the supernet runs as before
        check(self, subnet)
        if self.encoder is not tiny_supernet.encoder:
            seen.append(tiny_supernet.active_subnet)

    monkeypatch.setattr(modeling_lighthubert.LightHubertModel, "_set_active", watch)
    tiny_supernet.extract_subnet(tiny_supernet.search_space.smallest())
    assert seen and set(seen) == {UNEQUAL}
    assert torch.equal(tiny_supernet(waveforms).last_hidden_state, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_run_again_for_their_gradient_run_as_they_did(make_model, waveforms, reentrant):
    model = make_model(LightHubertModel, layerdrop=0.0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    model.set_active_subnet(Subnet(64, (2, 2, 2), (96, 96, 96)))
    loss = model(waveforms).last_hidden_state.square().mean()
    model.set_active_subnet(Subnet(64, (4, 4, 4), (192, 192, 192)))  # of the same width
    with pytest.raises(RuntimeError, match=r"call backward\(\) first"):
        loss.backward()
