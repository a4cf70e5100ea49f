"""Cards are rendered from data, say what is known and nothing else, and their metadata is valid."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from huggingface_hub import EvalResult, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HubertConfig

from lighthubert_hf import LightHubertConfig, SearchSpace, Subnet
from lighthubert_hf.hub.card import (
    CardFacts,
    FamilyMember,
    Latency,
    human,
    is_hub_id,
    plain_hubert,
    read_config,
    render_card,
    render_picture,
    teacher_license,
    with_family,
)

from ..examples import examples

WER = EvalResult(
    task_type="automatic-speech-recognition",
    dataset_type="openslr/librispeech_asr",
    dataset_name="LibriSpeech",
    dataset_config="clean",
    dataset_split="test",
    metric_type="wer",
    metric_name="WER",
    metric_value=8.34,
)
EVERYTHING = CardFacts(
    parameters=26_878_123,
    macs_per_second=3_612_345_678,
    latency=Latency(12.34, "2 cores of a laptop", "lighthubert profile acme/light-27M"),
    loss=0.23124,
    loss_data="L1 on the validation split",
    teacher="facebook/hubert-base-ls960",
    datasets=("openslr/librispeech_asr", "our own recordings"),
    languages=("en",),
    license="apache-2.0",
    supernet="acme/supernet",
    revision="0123abc",
    evaluations=(WER, replace(WER, dataset_config="other", metric_value=20.1)),
    tags=("demo",),
)


def config(**changes) -> dict:
    """config.json of the published small default, and variations of it."""
    data = {
        "architectures": ["LightHubertModel"],
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
    }
    return LightHubertConfig(**data | changes).to_dict()


def test_everything_known_is_said():
    text = str(render_card(config(), EVERYTHING, "acme/light-27M"))
    for part in (
        "26.9M (26,878,123)",
        "3.61G per second of audio, in a clip of 10 s |",
        "12.3 ms per second of audio, measured on 2 cores of a laptop, by `lighthubert profile acme/light-27M`",
        "0.2312 (L1 on the validation split)",
        "Distilled from [facebook/hubert-base-ls960](https://huggingface.co/facebook/hubert-base-ls960)",
        "on [openslr/librispeech_asr](https://huggingface.co/datasets/openslr/librispeech_asr), our own recordings.",
        "`apache-2.0`, carried on from the weights of",
        "| Supernet | [acme/supernet]",
        "`0123abc`",
        json.dumps(Subnet(384, (6,) * 12, (1536,) * 12).to_dict()),
        "| automatic-speech-recognition | LibriSpeech, clean, test | WER | 8.34 |",
        "2203.15610",
        "![12 layers, 384 wide](architecture.svg)",
        "50 frames a second",
        'AutoModel.from_pretrained("acme/light-27M")',
    ):
        assert part in text
    assert text.count("| 6 | 384 | 1536 |") == 12


def test_what_was_predicted_is_not_called_measured():
    latency = Latency(12.3, machine="a laptop", command="lighthubert search", predicted=True)
    facts = CardFacts(latency=latency)
    text = str(render_card(config(), facts))
    assert (
        "12.3 ms per second of audio, predicted from times of its parts on a laptop, by `lighthubert search`" in text
    )
    assert "easured" not in text
    assert CardFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


@pytest.mark.parametrize(
    "words",
    [
        ["## In numbers", "Parameters", "Multiply", "Latency", "istillation loss"],
        ["## Evaluation", "model-index"],
        ["## Training", "Distilled"],
        ["## Licence", "license"],
        ["Supernet", "supernet", "base_model"],
        ["## Subnets"],
        ["datasets", "metrics"],
    ],
)
def test_what_is_unknown_is_not_mentioned(words):
    text = str(render_card(config(), CardFacts()))
    for word in words:
        assert word not in text


@pytest.mark.parametrize("name", ["parameters", "macs_per_second", "latency", "loss", "teacher", "license"])
def test_each_fact_stands_by_itself(name):
    alone = CardFacts(**{name: getattr(EVERYTHING, name)})
    text, nothing = str(render_card(config(), alone)), str(render_card(config(), CardFacts()))
    assert text != nothing
    assert "None" not in text


def test_zero_is_a_measurement():
    assert "| Distillation loss | 0 |" in str(render_card(config(), CardFacts(loss=0.0)))


def test_metadata_round_trips_through_the_client():
    data = ModelCard(str(render_card(config(), EVERYTHING, "acme/light-27M"))).data
    assert data.eval_results == list(EVERYTHING.evaluations)
    assert (data.model_name, data.metrics, data.license) == ("light-27M", ["wer"], "apache-2.0")
    assert (data.base_model, data.datasets, data.language) == ("acme/supernet", ["openslr/librispeech_asr"], ["en"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "feature-extraction")
    assert {"lighthubert", "hubert", "demo"} <= set(data.tags)


def test_a_name_that_is_no_hub_id_is_no_link():
    text = str(render_card(config(), CardFacts(supernet="supernet", teacher="teacher", datasets=("LibriSpeech",))))
    assert "https://huggingface.co/" not in text
    assert "base_model" not in text
    assert "Distilled from teacher on LibriSpeech." in text


def test_unequal_layers_and_windows_are_in_the_table():
    layers = {0: {"num_attention_heads": 4, "intermediate_size": 1344}, 5: {"attention_window": 64}}
    text = str(render_card(config(per_layer_config=layers), CardFacts()))
    assert "| 0 | 4 | 256 | 1344 | global |" in text
    assert "| 5 | 6 | 384 | 1536 | 64 |" in text


def test_supernet():
    space = SearchSpace.small()
    supernet = config(hidden_size=768, num_attention_heads=12, intermediate_size=3072, search_space=space.to_dict())
    members = (FamilyMember("acme/light-27M", 26_878_123, 3_600_000_000, 0.23),)
    text = str(render_card(supernet, CardFacts(family=members), "acme/super"))
    assert "951,892,141,473" in text
    assert "| width | 256, 384, 512 |" in text
    assert "supernet.extract_subnet(" in text
    assert "to_hubert" not in text
    assert "[acme/light-27M](https://huggingface.co/acme/light-27M) | 26.9M | 3.6G | 0.23 |" in text
    assert "supernet" in ModelCard(text).data.tags


def test_channels_of_the_front_end():
    space = SearchSpace.small_elastic()
    supernet = config(hidden_size=768, num_attention_heads=12, intermediate_size=3072, search_space=space.to_dict())
    text = str(render_card(supernet, CardFacts(), "acme/super"))
    assert "| channels of convolution 0 | 64, 128, 256, 512 |" in text
    assert f"{space.count():,}" in text
    narrow = config(conv_dim=[64, 96, 128, 192, 256, 384, 512])
    assert "They have 64, 96, 128, 192, 256, 384, 512 channels." in str(render_card(narrow, CardFacts()))
    assert "They have" not in str(render_card(config(), CardFacts()))
    root = ElementTree.fromstring(render_picture(narrow))
    bars = [int(bar.get("width")) for bar in root.iter("{http://www.w3.org/2000/svg}rect")][-7:]
    assert bars == [round(300 * channels / 1536) for channels in reversed(narrow["conv_dim"])]
    assert "front end: 7 convolutions, 64–512 channels" in "".join(root.itertext())


@pytest.mark.parametrize(
    ("architecture", "task", "auto"),
    [
        ("LightHubertForPreTraining", "feature-extraction", "AutoModel"),
        ("LightHubertForCTC", "automatic-speech-recognition", "AutoModelForCTC"),
        ("LightHubertForSequenceClassification", "audio-classification", "AutoModelForAudioClassification"),
        ("LightHubertForXVector", "feature-extraction", "AutoModelForAudioXVector"),
        ("LightHubertForAudioFrameClassification", "audio-classification", "AutoModelForAudioFrameClassification"),
    ],
)
def test_every_head_has_its_example(architecture, task, auto):
    card = render_card(config(architectures=[architecture]), CardFacts())
    assert card.data.pipeline_tag == task
    assert f"{auto}.from_pretrained" in str(card)


def test_plain_hubert_folder():
    text = str(render_card(HubertConfig(architectures=["HubertModel"]).to_dict(), CardFacts()))
    assert "HubertModel.from_pretrained" in text
    assert "trust_remote_code" not in text
    assert "| 11 | 12 | 768 | 3072 |" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "direct"),
        ({"architectures": ["LightHubertForCTC"]}, "converted"),
        ({"architectures": ["LightHubertForXVector"]}, "impossible"),
        ({"num_attention_heads": 4}, "converted"),
        ({"num_attention_heads": 8}, "impossible"),
        ({"attention_window": 64}, "impossible"),
        ({"per_layer_config": {1: {"intermediate_size": 1152}}}, "converted"),
        ({"hidden_size": 400, "num_attention_heads": 5}, "converted"),
        ({"hidden_size": 400, "num_attention_heads": 6}, "impossible"),
    ],
)
def test_plain_hubert_is_offered_where_it_is_possible(changes, expected):
    data = config(**changes)
    assert plain_hubert(read_config(data)) == expected
    text = str(render_card(data, CardFacts()))
    assert ("HubertModel.from_pretrained" in text) == (expected == "direct")
    assert ("to_hubert().save_pretrained" in text) == (expected == "converted")
    assert ("No plain HuBERT" in text) == (expected == "impossible")


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="model_type 'bert' is not one of"):
        render_card({"model_type": "bert"}, CardFacts())
    with pytest.raises(ValueError, match="no card can be written for 'LightHubertForPoetry'"):
        render_card(config(architectures=["LightHubertForPoetry"]), CardFacts())


# Facts


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1, "27M", True])
def test_what_cannot_have_been_measured(number):
    for name in ("parameters", "macs_per_second", "loss"):
        with pytest.raises(ValueError, match=name):
            CardFacts(**{name: number})
    with pytest.raises(ValueError, match="milliseconds_per_second"):
        Latency(number, "machine", "command")


def test_a_latency_needs_machine_and_command():
    with pytest.raises(ValueError, match="needs its machine"):
        Latency(1.0, " ", "command")
    with pytest.raises(ValueError, match="needs its command"):
        Latency(1.0, "machine", "")


def test_evaluations_must_be_numbers():
    with pytest.raises(ValueError, match="the wer of LibriSpeech is nan"):
        CardFacts(evaluations=(replace(WER, metric_value=math.nan),))


@pytest.mark.parametrize("text", ["two\nlines", "next\x85line", "\ud800"])
def test_evaluations_are_printable(text):
    with pytest.raises(ValueError, match="metric_name of an evaluation must be one line of printable text"):
        CardFacts(evaluations=(replace(WER, metric_name=text),))


def test_evaluations_that_the_hub_would_merge():
    with pytest.raises(ValueError, match="'Libri' and 'LibriSpeech' are evaluations of the same task"):
        CardFacts(evaluations=(WER, replace(WER, dataset_name="Libri")))


TEXT = st.text(max_size=30)
FACTS = st.builds(
    CardFacts,
    parameters=st.none() | st.integers(0, 10**9),
    macs_per_second=st.none() | st.integers(0, 10**11),
    latency=st.none() | st.builds(Latency, st.floats(0, 1e4), st.just("a | b") | TEXT.filter(str.strip), st.just("x")),
    loss=st.none() | st.floats(0, 100),
    loss_data=st.none() | TEXT,
    teacher=st.none() | TEXT | st.just("acme/teacher"),
    datasets=st.lists(TEXT, max_size=2),
    license=st.none() | st.sampled_from(["apache-2.0", "mit"]),
    supernet=st.none() | TEXT,
    subnet=st.none() | st.just(Subnet(16, (1, 2), (3, 4))),
    evaluations=st.lists(
        st.builds(
            lambda value, name, split: replace(WER, metric_value=value, metric_name=name, dataset_split=split),
            st.floats(-1e6, 1e6),
            st.text(min_size=1, max_size=9).filter(str.isprintable),
            st.just("test"),
        ),
        max_size=2,
    ),
    family=st.lists(st.just(FamilyMember("acme/x", 1, 2, 0.5)), max_size=1),
)


@given(FACTS)
def test_facts_survive_json(facts):
    assert CardFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


@settings(max_examples=examples(60), deadline=None)
@given(FACTS)
def test_any_facts_give_a_card_that_the_client_accepts(facts):
    text = str(render_card(config(), facts, "acme/light"))
    assert ModelCard(text).data.eval_results == (list(facts.evaluations) or None)
    table = [line for line in text.split("## In numbers")[-1].split("##")[0].splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in table if "layer" not in line)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "must hold a JSON object"), ('{"lose": 1}', "unexpected keyword argument 'lose'")],
)
def test_a_broken_facts_file(tmp_path, content, message):
    (tmp_path / "model_card.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        CardFacts.load(tmp_path / "model_card.json")


# Parts


@pytest.mark.parametrize(
    ("number", "text"),
    [(512, "512"), (740_000, "740k"), (26_878_123, "26.9M"), (3_612_345_678, "3.61G"), (2e9, "2G"), (0, "0")],
)
def test_human(number, text):
    assert human(number) == text


def test_the_picture_is_to_scale_and_well_formed():
    layers = {0: {"num_attention_heads": 3, "intermediate_size": 1536}, 1: {"num_attention_heads": 6}}
    root = ElementTree.fromstring(render_picture(config(num_hidden_layers=2, per_layer_config=layers)))
    bars = [int(bar.get("width")) for bar in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert bars == [75, 300, 38, 300]  # layer 1 above layer 0; 384, 1536, 192 and 1536 channels
    assert "2 layers, 384 wide" in "".join(root.itertext())


def test_the_family_is_replaced_and_the_rest_is_kept():
    one, two = FamilyMember("acme/one", 1, 2, 0.5), FamilyMember("acme/two", 1, 2, 0.5)
    first = with_family("---\nlicense: mit\n---\n# Mine\n", (one,))
    second = with_family(first + "## After\n", (two,))
    assert second.startswith("---\nlicense: mit\n---\n# Mine\n")
    assert second.endswith("## After\n")
    assert "acme/two" in second
    assert "acme/one" not in second


def test_the_licence_of_a_teacher_in_a_folder(tmp_path):
    assert teacher_license(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Teacher\n")
    assert teacher_license(str(tmp_path)) == "apache-2.0"


# Text that others wrote

HOSTILE = st.text(max_size=40) | st.lists(
    st.sampled_from(
        [
            "\n# Heading\n",
            "<script>alert(1)</script>",
            "<!-- subnets -->",
            "[a](javascript:alert(1))",
            "![x](http://evil/x.png)",
            "`",
            "``",
            "|",
            "\\",
            "**b**",
            "_i_",
            "https://evil.example",
            "www.evil.example",
            "@someone",
            "$$x$$",
            "&lt;",
            "---",
            "\x00",
            "\u202e",
            "{{ facts }}",
            "owner/name",
            ":",
            "~~s~~",
            "\n\n| a | b |\n|---|---|\n",
            "\r",
            "\u2028",
            "[^1]",
            "- [ ] t",
        ]
    ),
    max_size=6,
).map("".join)


@settings(max_examples=examples(40))
@given(HOSTILE, HOSTILE, HOSTILE)
def test_what_others_wrote_is_shown_and_does_nothing(one, two, three):
    """Parsed as GitHub and the Hub parse it: the same headings, tables, links and HTML as with harmless words."""
    line = "".join(filter(str.isprintable, three)) or "x"
    facts = replace(
        EVERYTHING,
        loss_data=one,
        teacher=two,
        datasets=(one, f"owner/name:{two}"),
        license=three,
        supernet=two,
        revision=one,
        converted_from=f"owner/name:{one}",
        converted_revision=two,
        latency=Latency(1.0, f"m{one}", f"c{two}"),
        evaluations=(replace(WER, dataset_name=line, metric_name=line, task_name=line),),
        family=(FamilyMember("acme/x", 1, 2, 0.5, three),),
    )
    text = str(render_card(config(), facts, "acme/light"))
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "transformers"
    assert set(data) <= set(ModelCard(str(render_card(config(), EVERYTHING, "acme/x"))).data.to_dict()) | {
        "license_name"
    }
    calm = replace(
        facts,
        loss_data=_calm(one),
        teacher=_calm(two),
        datasets=(_calm(one), f"owner/name:{_calm(two)}"),
        license=three and ("mit" if re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", three) else "w w"),
        supernet=_calm(two),
        revision=_calm(one),
        converted_from=f"owner/name:{one and 'w'}",
        converted_revision=_calm(two),
        latency=Latency(1.0, "m", "c"),
        evaluations=(replace(WER, dataset_name="w", metric_name="w", task_name="w"),),
        family=(FamilyMember("acme/x", 1, 2, 0.5, "w"),),
    )
    assert _parts(text) == _parts(str(render_card(config(), calm, "acme/light")))


def _calm(text):
    """A word that is linked where the text is, and missing where it is."""
    repository = text.partition(":")[0]
    return (repository if is_hub_id(repository) else "w") if text else ""


def _parts(text):
    """Kinds of blocks and spans of the body, links with their targets; without what they say."""
    from markdown_it import MarkdownIt

    found = []
    parser = MarkdownIt("gfm-like", {"linkify": False}).disable("smartquotes", True)
    for token in parser.parse(text.split("\n---\n", 1)[1]):
        found.append((token.type, token.tag))
        for child in token.children or ():
            if child.type not in ("text", "text_special", "softbreak", "code_inline"):
                found.append((child.type, child.attrGet("href")))
    return found


@pytest.mark.parametrize(
    "facts",
    [
        {"teacher": 7},
        {"license": ["mit"]},
        {"datasets": "abc"},
        {"datasets": [None]},
        {"languages": ["en\n# x"]},
        {"tags": [""]},
        {"revision": {}},
        {"evaluations": "abc"},
        {"evaluations": [7]},
        {"family": {"a": 1}},
        {"latency": 3},
        {"subnet": [1]},
        {"family": [{"repo_id": "x](y)", "parameters": 1, "macs_per_second": 1, "score": 1}]},
        {"family": [{"repo_id": "a/b", "parameters": "<b>", "macs_per_second": 1, "score": 1}]},
        {"family": [{"repo_id": "a/b", "parameters": 1, "macs_per_second": 1, "score": "1"}]},
        {"evaluations": [vars(WER) | {"metric_value": "<b>"}]},
        {"evaluations": [vars(WER) | {"task_name": ["x"]}]},
    ],
)
def test_facts_of_the_wrong_kind_are_one_line_with_the_files_name(tmp_path, facts):
    (tmp_path / "model_card.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"model_card\.json") as error:
        CardFacts.load(tmp_path / "model_card.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a b", "x](http://evil)", 'a"); import os', "a/b/c", "../x", "a--b"])
def test_a_card_is_of_a_repository_that_can_be(name):
    with pytest.raises(ValueError, match="cannot be a repository"):
        render_card(config(), CardFacts(), name)


@pytest.mark.parametrize(
    ("front_matter", "licence"),
    [
        ("license: other\nlicense_name: my licence\n", "my licence"),
        ("license: [mit, apache-2.0]\n", "mit, apache-2.0"),
        ("license: |\n  Mine\n  # Heading\n", "Mine # Heading"),
        ("license: 7\n", "7"),
    ],
)
def test_licences_that_are_no_identifier(tmp_path, front_matter, licence):
    (tmp_path / "README.md").write_text(f"---\n{front_matter}---\n")
    assert teacher_license(str(tmp_path)) == licence
    card = render_card(config(), CardFacts(license=licence))
    if " " in licence:
        assert (card.data.license, card.data.to_dict()["license_name"]) == ("other", licence)


def test_a_teachers_card_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    with pytest.raises(ValueError, match=r"README\.md cannot be read"):
        teacher_license(str(tmp_path))
