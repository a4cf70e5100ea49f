"""Publishing the subnets of a pareto.json together."""

import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from lighthubert_hf import Subnet
from lighthubert_hf.costs.figures import size_names
from lighthubert_hf.hub.card import CardFacts, Latency
from lighthubert_hf.hub.family import push_family, read_pareto
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.publishing import push_folder
from lighthubert_hf.hub.upload import PublishingError

from .accounts import TOKEN

PREFIX = "acme/light"
SMALL, WIDE = Subnet(16, (2, 2), (32, 32)), Subnet(32, (4, 2, 4), (64, 128, 64))


@pytest.fixture
def supernet_folder(supernet, tmp_path):
    facts = CardFacts(teacher="acme/teacher", license="apache-2.0", datasets=("acme/speech",), languages=("en",))
    return save_model_folder(supernet, tmp_path / "supernet", card=facts)


@pytest.fixture
def pareto(supernet, supernet_folder, tmp_path):
    """One subnet that is saved, with a latency in its own card, and one that has to be extracted."""
    save_model_folder(
        supernet.extract_subnet(SMALL), tmp_path / "small", card=CardFacts(loss_data="L1 on acme/speech")
    )
    data = {
        "supernet": "supernet",
        "revision": None,
        "objectives": ["parameters", "loss"],
        "subnets": [
            {
                "name": "a",
                "subnet": SMALL.to_dict(),
                "parameters": 6_328,
                "macs_per_second": 1_647_717_827,
                "loss": 0.5,
                "folder": "small",
                "latency": {"milliseconds_per_second": 1.5, "machine": "2 cores", "command": "lighthubert profile"},
                "trial": 17,
            },
            {
                "name": "b",
                "subnet": WIDE.to_dict(),
                "parameters": 31_448,
                "macs_per_second": 4_143_920_205,
                "loss": 0.25,
                "folder": None,
            },
        ],
    }
    return write(tmp_path, data)


def write(folder, data):
    (folder / "pareto.json").write_text(json.dumps(data))
    return folder / "pareto.json"


def card(hub, repo_id):
    return hub.files(repo_id)["README.md"].decode()


def test_family_of_a_local_supernet(hub, pareto):
    result = push_family(pareto, PREFIX, token=TOKEN)
    names = ["acme/light-6k", "acme/light-31k", "acme/light-supernet"]
    assert [r.repo_id for r in (*result.subnets, result.supernet)] == names
    assert set(hub.store.repos) == set(names)
    for name, subnet in zip(names, (SMALL, WIDE), strict=False):
        text = card(hub, name)
        assert json.dumps(subnet.to_dict()) in text
        assert "[acme/light-supernet](https://huggingface.co/acme/light-supernet)" in text
        data = ModelCard(text).data
        assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "acme/light-supernet", ["acme/speech"])
    assert "1.5 ms per second of audio, measured on 2 cores, by `lighthubert profile`" in card(hub, names[0])
    assert "L1 on acme/speech" in card(hub, names[0])
    assert "Latency" not in card(hub, names[1])
    table = card(hub, "acme/light-supernet")
    assert re.findall(r"\| \[(.*?)\]\(https://huggingface.co/\1\) \| (\S+) \| (\S+) \| (\S+) \|", table) == [
        ("acme/light-6k", "6.33k", "1.65G", "0.5"),
        ("acme/light-31k", "31.4k", "4.14G", "0.25"),
    ]
    (collection,) = hub.store.collections.values()
    assert result.collection == f"{hub.endpoint}/collections/{collection['slug']}"
    assert (collection["title"], collection["owner"]["name"]) == ("light", "acme")
    notes = {item["id"]: item["note"]["text"] for item in collection["items"]}
    assert list(notes) == names
    assert notes["acme/light-31k"].startswith("31.4k parameters, 4.14G multiply-accumulates")
    assert [subnet["repo_id"] for subnet in json.loads(json.dumps(result.to_dict()))["subnets"]] == names[:2]
    assert str(result).splitlines()[-1] == f"collection: {result.collection}"


def test_extracted_weights_are_the_subnets(hub, pareto, supernet):
    push_family(pareto, PREFIX)
    weights = load(hub.files("acme/light-31k")["model.safetensors"])
    expected = supernet.extract_subnet(WIDE).state_dict()
    assert weights.keys() == expected.keys()
    assert all(weights[key].equal(value) for key, value in expected.items())


def test_again_changes_nothing_and_corrects_notes(hub, pareto):
    push_family(pareto, PREFIX)
    heads = {name: repo.branches["main"] for name, repo in hub.store.repos.items()}
    push_family(pareto, PREFIX)
    assert {name: repo.branches["main"] for name, repo in hub.store.repos.items()} == heads
    data = json.loads(pareto.read_text())
    data["subnets"][0]["loss"] = 0.4
    push_family(write(pareto.parent, data), PREFIX)
    (collection,) = hub.store.collections.values()
    assert len(collection["items"]) == 3
    assert collection["items"][0]["note"]["text"].endswith("distillation loss 0.4")
    assert len(hub.store.repos["acme/light-6k"].history("main")) == 3


@pytest.mark.parametrize("owner", ["acme", "alice"])
def test_supernet_on_the_hub(hub, pareto, supernet_folder, owner):
    """Its card is completed if it belongs to the owner of the family, else left alone."""
    revision = push_folder(supernet_folder, "acme/super").commit.oid
    before = card(hub, "acme/super")
    data = json.loads(pareto.read_text()) | {"supernet": "acme/super", "revision": revision}
    wide = data["subnets"].pop()
    result = push_family(write(pareto.parent, data), f"{owner}/light")
    assert result.supernet is None
    assert revision in card(hub, f"{owner}/light-6k")
    if owner == "alice":
        assert result.supernet_commit is None
        assert card(hub, "acme/super") == before
        return
    assert card(hub, "acme/super").startswith(before.rstrip())
    assert "acme/light-6k" in card(hub, "acme/super")
    data["subnets"] = [wide]
    push_family(write(pareto.parent, data), "acme/light")
    assert "acme/light-31k" in card(hub, "acme/super")
    assert "acme/light-6k" not in card(hub, "acme/super")
    assert card(hub, "acme/super").count("## Subnets") == 1
    assert "acme/super" in {item["id"] for c in hub.store.collections.values() for item in c["items"]}


def test_dry_run_writes_what_would_be_pushed(hub, pareto, tmp_path):
    result = push_family(pareto, PREFIX, dry_run=tmp_path / "dry")
    assert hub.requests == []
    assert result.collection is None
    push_family(pareto, PREFIX)
    for name in ("light-6k", "light-31k", "light-supernet"):
        files = hub.files(f"acme/{name}")
        del files[".gitattributes"]
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "dry" / name).iterdir()}


def test_private_family(hub, pareto):
    push_family(pareto, PREFIX, private=True)
    assert all(repo.private for repo in hub.store.repos.values())
    assert all(collection["private"] for collection in hub.store.collections.values())


def test_an_edited_supernet_card_keeps_its_words(hub, pareto, supernet_folder):
    readme = supernet_folder / "README.md"
    readme.write_text(readme.read_text().replace("## Architecture", "## In my words"))
    push_family(pareto, PREFIX)
    text = card(hub, "acme/light-supernet")
    assert "## In my words" in text
    assert "acme/light-31k" in text


def test_a_failure_says_what_was_pushed_and_can_be_continued(hub, pareto):
    hub.faults.add("POST /api/models/acme/light-31k/commit", "status", times=1000)
    with pytest.raises(PublishingError, match=r"acme/light-31k.*pushed before: acme/light-6k; run the same") as caught:
        push_family(pareto, PREFIX)
    assert "\n" not in str(caught.value)
    hub.faults.clear()
    push_family(pareto, PREFIX)
    assert len(hub.store.repos["acme/light-6k"].history("main")) == 2


def test_everything_is_checked_before_anything_is_pushed(hub, pareto, supernet_folder):
    (supernet_folder / "notes.md").write_text(f"token {TOKEN}")
    with pytest.raises(ValueError, match="access token"):
        push_family(pareto, PREFIX)
    assert hub.requests == []


def test_a_folder_that_holds_another_subnet_is_refused(hub, pareto):
    data = json.loads(pareto.read_text())
    for key in ("subnet", "parameters", "macs_per_second"):
        data["subnets"][0][key] = data["subnets"][1][key]
    with pytest.raises(ValueError, match=r"holds 2 layers, 16 wide.*but a is 3 layers, 32 wide"):
        push_family(write(pareto.parent, data), PREFIX)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": 6_329}, r"parameters=6,329 of a, which has 6,328"),
        ({"macs_per_second": 1_647_717_826}, r"macs_per_second=1,647,717,826 of a, which has"),
        ({"subnet": Subnet(64, (2, 2), (32, 32)).to_dict(), "folder": None}, r"a is no subnet of .*supernet"),
    ],
)
def test_numbers_are_counted_before_anything_is_pushed(hub, pareto, changes, message):
    data = json.loads(pareto.read_text())
    data["subnets"][0] |= changes
    with pytest.raises(ValueError, match=message) as caught:
        push_family(write(pareto.parent, data), PREFIX)
    assert str(pareto) in str(caught.value)
    assert hub.requests == []


def test_the_prefix_needs_an_owner(pareto):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        push_family(pareto, "light")


# The file


def test_reading(pareto, tmp_path):
    read = read_pareto(pareto)
    assert read.supernet == tmp_path / "supernet"
    assert [entry.folder for entry in read.subnets] == [tmp_path / "small", None]
    assert read.subnets[0].latency.machine == "2 cores"
    assert read.subnets[1].subnet == WIDE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["supernet"], None, "supernet must be a string"),
        (["supernet"], "", "supernet is empty"),
        (["score"], "wer", "subnet 0: wer must be a number"),
        (["revision"], 3, "revision must be a string"),
        (["subnets"], {}, "subnets must be a list"),
        (["subnets"], [], "nothing to publish"),
        (["subnets", 1], 5, "subnet 1 must be an object"),
        (["subnets", 0, "subnet"], {"hidden_size": 3}, "subnet 0: a Subnet has exactly the keys"),
        (["subnets", 0, "parameters"], "7M", "subnet 0: parameters must be a number"),
        (["subnets", 0, "parameters"], True, "parameters must be a number"),
        (["subnets", 0, "parameters"], 7.5, "parameters must be a whole number"),
        (["subnets", 0, "macs_per_second"], -1, "macs_per_second must be a whole number"),
        (["subnets", 0, "loss"], float("nan"), "loss must be a finite number"),
        (["subnets", 0, "name"], None, "name must be a string"),
        (["subnets", 0, "latency"], {"machine": "x"}, "subnet 0: .*milliseconds_per_second"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(pareto, path, value, message):
    data = json.loads(pareto.read_text())
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=message) as caught:
        read_pareto(write(pareto.parent, data))
    assert str(pareto) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_a_search_the_saved_ones_or_the_front_are_published(pareto):
    data = json.loads(pareto.read_text())
    saved, other = data["subnets"]
    beaten = other | {"name": "c", "on_front": False, "loss": None}

    def chosen(*subnets):
        data["subnets"] = subnets
        return [entry.name for entry in read_pareto(write(pareto.parent, data)).subnets]

    assert chosen(saved | {"on_front": True}, other | {"on_front": True}, beaten) == ["a"]
    assert chosen(saved | {"on_front": True, "folder": None}, other | {"on_front": True}, beaten) == ["a", "b"]
    assert chosen(saved, other) == ["a", "b"]
    with pytest.raises(ValueError, match="no subnet on the front"):
        chosen(beaten)


def test_another_score_than_the_loss(hub, pareto):
    data = json.loads(pareto.read_text()) | {"score": "accuracy"}
    for subnet in data["subnets"]:
        del subnet["loss"]
        subnet["accuracy"] = -0.75
    push_family(write(pareto.parent, data), PREFIX)
    assert "Distillation loss" not in card(hub, "acme/light-31k")
    assert "per second of audio (clips of 10 s) | accuracy |" in card(hub, "acme/light-supernet")
    (collection,) = hub.store.collections.values()
    assert collection["items"][0]["note"]["text"].endswith("accuracy -0.75")


def test_missing_files(pareto, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no pareto\.json of a search"):
        read_pareto(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_pareto(tmp_path / "broken.json")
    data = json.loads(pareto.read_text())
    data["subnets"][0]["folder"] = "gone"
    with pytest.raises(FileNotFoundError, match="there is no folder gone"):
        read_pareto(write(tmp_path, data))


# Names


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ([26_878_123], ["27M"]),
        ([11_450_000, 26_880_000, 44_400_000], ["11M", "27M", "44M"]),
        ([26_600_000, 27_400_000], ["26.6M", "27.4M"]),
        ([26_610_000, 26_640_000, 94_380_000], ["26.61M", "26.64M", "94M"]),
        ([1_720_000, 740_000, 999_999], ["1.7M", "740k", "1M"]),
        ([26_878_123, 26_878_123, 27_100_000], ["26.9M-aaaaaa", "26.9M-bbbbbb", "27.1M"]),
        ([5, 5], ["0k-aaaaaa", "0k-bbbbbb"]),
    ],
)
def test_names_by_size(parameters, names):
    assert size_names(parameters, ["a" * 16, "b" * 16, "c" * 16][: len(parameters)]) == names


@given(st.lists(st.tuples(st.integers(1, 200_000_000), st.integers(0, 2**24 - 1)), unique_by=lambda pair: pair[1]))
def test_names_always_differ_and_are_possible(pairs):
    names = size_names([count for count, _ in pairs], [f"{key:06x}0000000000" for _, key in pairs])
    assert len(set(names)) == len(pairs)
    assert all(re.fullmatch(r"\d+(\.\d+)?[Mk](-[0-9a-f]{6})?", name) for name in names)


def test_collection_and_models_are_found_by_the_client(hub, pareto):
    result = push_family(pareto, PREFIX, collection="Small speech encoders")
    slug = result.collection.split("/collections/")[1]
    collection = HfApi(token=TOKEN).get_collection(slug)
    assert collection.title == "Small speech encoders"
    assert [item.item_type for item in collection.items] == ["model"] * 3


def test_a_measured_time_is_better_than_a_predicted_one(hub, pareto, tmp_path, supernet):
    data = json.loads(pareto.read_text())
    data["subnets"][0]["latency"] |= {"predicted": True}
    write(pareto.parent, data)
    push_family(pareto, PREFIX)
    assert "1.5 ms per second of audio, predicted" in card(hub, "acme/light-6k")
    measured = CardFacts(latency=Latency(2.5, machine="2 cores", command="lighthubert profile"))
    save_model_folder(supernet.extract_subnet(SMALL), tmp_path / "small", card=measured)
    push_family(pareto, PREFIX)
    assert "2.5 ms per second of audio, measured" in card(hub, "acme/light-6k")


def test_facts_of_the_file_win(hub, pareto, tmp_path, supernet):
    facts = CardFacts(loss=9.0, parameters=1, teacher="acme/other")
    save_model_folder(supernet.extract_subnet(SMALL), tmp_path / "small", card=facts)
    push_family(pareto, PREFIX)
    read = CardFacts.from_dict(json.loads(hub.files("acme/light-6k")["model_card.json"]))
    assert (read.loss, read.parameters, read.teacher, read.subnet) == (0.5, 6_328, "acme/other", SMALL)
    assert replace(read, loss=0.5) == read


def test_a_space_beside_the_family(hub, pareto, tmp_path):
    """The page is a static Space, in the collection, too; again changes nothing."""
    space = tmp_path / "space"
    space.mkdir()
    (space / "README.md").write_text("---\nsdk: static\n---\n")
    (space / "index.html").write_text("<!doctype html>")
    result = push_family(pareto, PREFIX, space=space)
    assert result.space == f"{hub.endpoint}/spaces/acme/light-explorer"
    assert hub.files("spaces/acme/light-explorer")["index.html"] == b"<!doctype html>"
    (collection,) = hub.store.collections.values()
    assert (collection["items"][-1]["id"], collection["items"][-1]["type"]) == ("acme/light-explorer", "space")
    push_family(pareto, PREFIX, space=space)
    assert len(hub.store.repos["spaces/acme/light-explorer"].history("main")) == 2
    assert push_family(pareto, PREFIX, space=space, dry_run=tmp_path / "dry").space.endswith("light-explorer")
    assert (tmp_path / "dry" / "light-explorer" / "index.html").is_file()


def test_a_public_space_is_not_taken_for_a_private_one(hub, pareto, tmp_path):
    HfApi(token=TOKEN).create_repo("acme/light-explorer", repo_type="space", space_sdk="static")
    with pytest.raises(PublishingError, match="exists and is public"):
        push_family(pareto, PREFIX, space=tmp_path, private=True)
