"""Loading back what was published, in processes of their own: with the package, without it, as a plain HuBERT."""

import json
import re

import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lighthubert_hf import LightHubertForCTC, LightHubertForPreTraining, Subnet
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.publishing import push_folder, push_model

from .accounts import TOKEN

REPO = "acme/light"
# A sum that differs if any weight or the normalisation of the input does. The same model gives the same bits in every
# process, as all have one thread (1e-6); a plain HuBERT has other kernels (1e-5). A sum of magnitudes has no larger a
# relative error than its terms.
SUM = """
import torch
torch.set_num_threads(1)
wav = torch.sin(torch.arange(800) / 7).mul(0.1).numpy()
def total(model, processor):
    with torch.no_grad():
        return model.eval()(**processor(wav, sampling_rate=16000, return_tensors="pt"))[0].double().abs().sum().item()
"""


def expected(model):
    """The sum in this process."""
    namespace = {}
    exec(SUM, namespace)
    return namespace["total"](model, Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True))


@pytest.fixture
def unequal(supernet):
    """A subnet whose layers differ, which a plain HuBERT can only be after conversion."""
    return supernet.extract_subnet(Subnet(32, (2, 4), (64, 128)))


def test_with_the_code_of_the_repository(shared_hub, model, unequal, supernet, config, without_package):
    old = push_model(model, REPO).oid
    push_model(unequal, REPO)
    push_model(supernet, "acme/supernet")
    push_model(LightHubertForPreTraining(config), "acme/pretraining")
    output = without_package.run(
        SUM
        + f"""
import json
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoProcessor, HubertModel
def load(name, auto=AutoModel, **options):
    return auto.from_pretrained(name, trust_remote_code=True, **options)
processor = AutoFeatureExtractor.from_pretrained("{REPO}")
assert type(AutoProcessor.from_pretrained("{REPO}")).__name__ == "Wav2Vec2FeatureExtractor"
latest, pinned = load("{REPO}"), load("{REPO}", revision="{old}")
hubert = latest.to_hubert()
assert type(hubert) is HubertModel
supernet = load("acme/supernet")
smallest = supernet.extract_subnet(supernet.search_space.smallest())
head = load("{REPO}", AutoModelForCTC, vocab_size=7)
assert head.lm_head.out_features == 7
assert load("acme/pretraining").config.hidden_size == 32
import sys
assert not any(name.split(".")[0] == "lighthubert_hf" for name in sys.modules)
models = dict(latest=latest, pinned=pinned, hubert=hubert, supernet=supernet, smallest=smallest)
print(json.dumps({{name: total(model, processor) for name, model in models.items()}}))
"""
    )
    sums = json.loads(output)
    assert sums["latest"] == pytest.approx(expected(unequal), rel=1e-6)
    assert sums["pinned"] == pytest.approx(expected(model), rel=1e-6)
    assert sums["hubert"] == pytest.approx(expected(unequal), rel=1e-5)
    assert sums["supernet"] == pytest.approx(expected(supernet), rel=1e-6)
    assert sums["smallest"] == pytest.approx(expected(model), rel=1e-6)


def test_what_was_loaded_with_its_code_can_be_pushed_on(shared_hub, model, without_package):
    push_model(model, "acme/first")
    output = without_package.run(
        SUM
        + """
from transformers import AutoFeatureExtractor, AutoModel
first = AutoModel.from_pretrained("acme/first", trust_remote_code=True)
first.push_to_hub("acme/second")
second = AutoModel.from_pretrained("acme/second", trust_remote_code=True)
print(total(second, AutoFeatureExtractor.from_pretrained("acme/first")))
"""
    )
    assert float(output) == pytest.approx(expected(model), rel=1e-6)
    assert "modeling_lighthubert.py" in shared_hub.files("acme/second")


def test_with_the_package_no_flag_is_needed(shared_hub, model, with_package):
    push_model(model, "acme/small")
    output = with_package(
        SUM
        + """
import sys
def of_data():
    return [name for name in sys.modules if name.partition(".")[0] in ("evaluate", "datasets", "jiwer")]
for name in of_data():
    del sys.modules[name]
import lighthubert_hf
from transformers import AutoFeatureExtractor, AutoModel, HubertModel
processor = AutoFeatureExtractor.from_pretrained("acme/small")
model = AutoModel.from_pretrained("acme/small")
assert type(model) is lighthubert_hf.LightHubertModel
assert not of_data()
print(total(model, processor), total(HubertModel.from_pretrained("acme/small"), processor))
"""
    )
    sums = [float(number) for number in output.split()]
    assert sums == pytest.approx([expected(model)] * 2, rel=1e-6)


@pytest.mark.parametrize("token", [False, "hf_TestOtherToken0123456789", "hf_TestWrongToken01234567890"])
def test_a_private_model_without_the_token_or_with_another(shared_hub, model, without_package, token, tmp_path):
    push_model(model, "acme/private", private=True)
    program = f"""
from transformers import HubertModel
def load(token):
    return HubertModel.from_pretrained("acme/private", token=token, cache_dir={str(tmp_path)!r})
try:
    load({token!r})
except OSError as error:
    assert {str(token)!r} == "False" or {token!r} not in str(error)
else:
    raise AssertionError("loaded")
assert load({TOKEN!r}).config.hidden_size == 16
"""
    without_package.run(program)


def test_examples_of_the_card_run_as_they_stand(shared_hub, model, with_package, without_package, tmp_path):
    save_model_folder(model, tmp_path / "model")
    push_folder(tmp_path / "model", "acme/examples")
    card = shared_hub.files("acme/examples")["README.md"].decode()
    with_code, *without_code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    wav = "import numpy\nwav = numpy.zeros(800, dtype='float32')\nwav[400] = 1\n"
    check = "\nassert output.shape[-1] == 16\n"
    assert "import lighthubert_hf" in with_code
    with_package(wav + with_code + check)
    assert len(without_code) == 2
    for example in without_code:
        without_package.run(wav + example + check)


def test_recognition_with_its_tokenizer(shared_hub, config, without_package, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(["<pad>", "<unk>", "|", "a", "b"])}))
    processor = Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
        tokenizer=Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
    )
    ctc = LightHubertForCTC(config)
    with torch.no_grad():
        ctc.lm_head.weight.zero_()
        ctc.lm_head.bias.copy_(torch.arange(config.vocab_size) == 3)
    push_model(ctc.extract_subnet(ctc.search_space.smallest()), "acme/ctc", processor=processor)
    card = shared_hub.files("acme/ctc")["README.md"].decode()
    example = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    output = without_package.run(f"import numpy\nwav = numpy.ones(800, dtype='float32')\n{example}\nprint(output)")
    assert output.strip() == "['a']"


def test_a_download_that_breaks_off_is_resumed(shared_hub, model, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # else it is thrown away and begun anew
    push_model(model, "acme/resumed")
    whole = shared_hub.files("acme/resumed")["model.safetensors"]
    fault = shared_hub.faults.add("GET /large/", "drop-response", times=1)
    path = HfApi(token=TOKEN).hf_hub_download("acme/resumed", "model.safetensors")
    assert fault.times == 0
    assert any("GET /large/" in request and status == 206 for request, status in shared_hub.requests)
    with open(path, "rb") as file:
        assert file.read() == whole
