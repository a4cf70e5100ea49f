"""Loading back what was published, in processes of their own: with the package, without it, as a plain HuBERT."""

import json
import re

import pytest
import torch
from huggingface_hub import HfApi
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lighthubert_hf import LightHubertForCTC, LightHubertForPreTraining, Subnet
from lighthubert_hf.model_folder import save_model_folder
from lighthubert_hf.publishing import push_folder, push_model

from .conftest import TOKEN

REPO = "acme/light"
# A sum that differs if any weight or the normalisation of the input does.
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


def test_without_the_package(hub, model, unequal, supernet, run_python, config, tmp_path):
    """One process for everything that needs the code from the repository."""
    old = push_model(model, REPO).oid
    push_model(unequal, REPO)
    push_model(supernet, "acme/supernet")
    push_model(LightHubertForPreTraining(config), "acme/pretraining")
    output = run_python(
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
    sums = json.loads(output.splitlines()[-1])
    assert sums["latest"] == pytest.approx(expected(unequal), rel=1e-6)
    assert sums["pinned"] == pytest.approx(expected(model), rel=1e-6)
    assert sums["hubert"] == pytest.approx(expected(unequal), rel=1e-5)
    assert sums["supernet"] == pytest.approx(expected(supernet), rel=1e-6)
    assert sums["smallest"] == pytest.approx(expected(model), rel=1e-6)


def test_with_the_package_no_flag_is_needed(hub, model, run_python):
    push_model(model, REPO)
    output = run_python(
        SUM
        + f"""
import lighthubert_hf
from transformers import AutoFeatureExtractor, AutoModel, HubertModel
processor = AutoFeatureExtractor.from_pretrained("{REPO}")
model = AutoModel.from_pretrained("{REPO}")
assert type(model) is lighthubert_hf.LightHubertModel
print(total(model, processor), total(HubertModel.from_pretrained("{REPO}"), processor))
""",
        package=True,
    )
    sums = [float(number) for number in output.split()]
    assert sums == pytest.approx([expected(model)] * 2, rel=1e-6)


def test_private_with_and_without_token(hub, model, run_python):
    """As a plain HuBERT, so that no code is run; then without a token, then with the wrong one."""
    push_model(model, REPO, private=True)
    program = f"""
from transformers import HubertModel
try:
    print("loaded", HubertModel.from_pretrained("{REPO}").config.hidden_size)
except OSError as error:
    print("refused", error)
"""
    assert run_python(program).split()[0] == "loaded"
    hub.requests.clear()
    for token in (None, "hf_TestOtherToken0123456789", "hf_TestWrongToken01234567890"):
        output = run_python(program + "import shutil, os; shutil.rmtree(os.environ['HF_HOME'])", token=token)
        assert output.split()[0] == ("loaded" if token is None else "refused"), output
        # The first of these still has the cache of the run before, but no answer other than a refusal from the server.
        assert {status for request, status in hub.requests if "/acme/light" in request} <= {401, 404}


def test_examples_of_the_card_run_as_they_stand(hub, model, run_python, tmp_path):
    save_model_folder(model, tmp_path / "model")
    push_folder(tmp_path / "model", REPO)
    card = hub.files(REPO)["README.md"].decode()
    with_package, *without = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    wav = "import numpy\nwav = numpy.zeros(800, dtype='float32')\nwav[400] = 1\n"
    check = "\nassert output.shape[-1] == 16\n"
    assert "import lighthubert_hf" in with_package
    run_python(wav + with_package + check, package=True)
    assert len(without) == 2
    run_python(wav + check.join(without) + check)


def test_recognition_with_its_tokenizer(hub, config, run_python, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(["<pad>", "<unk>", "|", "a", "b"])}))
    processor = Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
        tokenizer=Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
    )
    ctc = LightHubertForCTC(config)
    with torch.no_grad():
        ctc.lm_head.bias.copy_(torch.tensor([0.0, 0, 0, 9, 0] + [0] * (config.vocab_size - 5)))
    push_model(ctc.extract_subnet(ctc.search_space.smallest()), REPO, processor=processor)
    card = hub.files(REPO)["README.md"].decode()
    without = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    output = run_python(f"import numpy\nwav = numpy.ones(800, dtype='float32')\n{without}\nprint(output)")
    assert output.strip() == "['a']"


def test_a_download_that_breaks_off_is_resumed(hub, model):
    push_model(model, REPO)
    size = len(hub.files(REPO)["model.safetensors"])
    fault = hub.faults.add("GET /large/", "drop-response", times=1)
    path = HfApi(token=TOKEN).hf_hub_download(REPO, "model.safetensors")
    assert fault.times == 0
    assert ("GET", 206) in [(request.split()[0], status) for request, status in hub.requests if "/large/" in request]
    with open(path, "rb") as file:
        assert len(file.read()) == size
