"""Whole searches in SQLite: what is scored, limits, resuming, joining, refusing, the report, the extracted models."""

import csv
import itertools
import json
import logging
import math
import multiprocessing
import time
from dataclasses import replace

import huggingface_hub
import optuna
import pytest
import torch

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, Subnet
from lighthubert_hf.costs import latency
from lighthubert_hf.costs.latency import LatencyTable
from lighthubert_hf.costs.profiling import count_macs, count_parameters, macs_per_second, profile
from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.hub.family import _check_architecture, read_pareto
from lighthubert_hf.search import report
from lighthubert_hf.search.costs import Cost, Limit, format_cost
from lighthubert_hf.search.report import describe_search, to_json
from lighthubert_hf.search.run import search, supernet_fingerprint
from lighthubert_hf.search.score import Score

from ..tiny import TINY_SPACE

DRAW = report._png
SMALL = {"trials": 10, "population_size": 4, "progress": False}


def analytic(subnet: Subnet) -> float:
    """Width and the heads of the first layer pay, everything else hardly."""
    return 4 / subnet.hidden_size**0.5 + 1 / subnet.num_attention_heads[0] + 10 / sum(subnet.intermediate_size)


class Counted:
    """A score that remembers what it was asked, and may stop."""

    def __init__(self, stop_after=math.inf):
        self.asked, self.stop_after = [], stop_after

    def __call__(self, subnet: Subnet) -> float:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(subnet)
        return analytic(subnet)


def found_by(result, algorithm):
    return {scored.subnet: scored.score for scored in result.subnets if algorithm in scored.found_by}


@pytest.fixture(autouse=True)
def plots_are_left_out(request, monkeypatch):
    """Drawing one takes longer than all else in a search; `test_report` looks at one."""
    if request.function is not test_report:
        monkeypatch.setattr(report, "_png", lambda result, cost: b"")


@pytest.fixture(scope="module")
def whole(make_model, tmp_path_factory):
    """Folder, result and score of one uninterrupted search, which others are compared with; to be left as it is."""
    folder, score = tmp_path_factory.mktemp("searches") / "whole", Counted()
    return folder, search(make_model(LightHubertModel), score, folder, supernet="me/first", **SMALL), score


def test_both_algorithms_share_a_budget_and_the_scores(tiny_supernet, whole):
    _, result, score = whole
    evolved, drawn = found_by(result, "evolutionary"), found_by(result, "random")
    assert len(evolved) == len(drawn) == 10
    assert len(score.asked) == len(set(score.asked)) == len(result.subnets) <= 20 - 4  # they begin with the same four
    space = tiny_supernet.search_space
    for anchor in (space.smallest(), Subnet.from_dict(tiny_supernet.config.default_subnet), space.largest()):
        assert anchor in evolved
        assert anchor in drawn
    for scored in result.subnets:
        assert scored.subnet in space
        assert scored.score == analytic(scored.subnet)
        assert scored.costs["parameters"] == count_parameters(tiny_supernet.config, scored.subnet)


def test_channels_of_the_front_end_are_searched(make_model, tmp_path):
    """Genes, costs, limits, report, and the models cut out: all as narrow as the subnet says."""
    space = replace(TINY_SPACE, conv_dim=((6, 16), (4, 8, 16), *[(16,)] * 4, (10, 16)))
    supernet = make_model(LightHubertModel, search_space=space)
    supernet.save_pretrained(tmp_path / "supernet")
    narrow = count_macs(supernet.config, space.default())
    result = search(
        supernet,
        lambda subnet: analytic(subnet) + 1 / sum(subnet.conv_dim),
        tmp_path / "search",
        objectives=[Cost("macs", 1.0)],
        limits=[Limit(Cost("macs", 1.0), narrow)],
        supernet=str(tmp_path / "supernet"),
        extract=2,
        **SMALL,
    )
    assert len({scored.subnet.conv_dim for scored in result.subnets}) > 3
    for scored in result.subnets:
        assert scored.subnet in space
        assert scored.costs["macs@1s"] == count_macs(supernet.config, scored.subnet)
    rows = list(csv.DictReader((tmp_path / "search" / "pareto.csv").open()))
    assert [row["conv_dim"] for row in rows] == [" ".join(map(str, s.subnet.conv_dim)) for s in result.subnets]
    pareto = read_pareto(tmp_path / "search" / "pareto.json")
    assert [entry.subnet for entry in pareto.subnets] == [s.subnet for s in result.subnets if s.folder]
    for entry in pareto.subnets:
        _check_architecture(entry)
        model = LightHubertModel.from_pretrained(entry.folder)
        assert tuple(model.config.conv_dim) == entry.subnet.conv_dim
        assert count_macs(model.config) == count_macs(supernet.config, entry.subnet)
        other = replace(entry, subnet=replace(entry.subnet, conv_dim=(6, 4, *[16] * 4, 11)))
        with pytest.raises(ValueError, match=r"holds .* front end .*, but .* front end 6-4-16-16-16-16-11"):
            _check_architecture(other)


def test_the_front_is_what_no_other_subnet_beats(tiny_supernet, tmp_path):
    result = search(tiny_supernet, analytic, tmp_path, objectives=[Cost("parameters"), Cost("macs")], **SMALL)
    points = {s.name: (s.score, s.costs["parameters"], s.costs["macs@10s"]) for s in result.subnets}
    assert len(points) == len(result.subnets)  # names are unique
    for scored in result.subnets:
        beaten = any(
            all(x <= y for x, y in zip(other, points[scored.name])) and other != points[scored.name]
            for other in points.values()
        )
        assert scored.on_front == (not beaten)
    assert [s.name for s in result.front] == [s.name for s in result.subnets if s.on_front]
    for history in result.hypervolume.values():
        assert len(history) == 10
        assert all(0 <= a <= b + 1e-12 <= 1 for a, b in itertools.pairwise(history))


def test_without_an_objective_the_best_within_the_limits_is_sought(tiny_supernet, tmp_path):
    limit = Limit(Cost("parameters"), count_parameters(tiny_supernet.config) * 0.7)
    result = search(tiny_supernet, analytic, tmp_path, objectives=[], limits=[limit], **SMALL)
    allowed = [scored for scored in result.subnets if scored.within_limits]
    assert [scored.score for scored in result.front] == [min(scored.score for scored in allowed)]
    assert len(allowed) < len(result.subnets)


def test_limits_hold_and_the_anchors_remain_for_comparison(tiny_supernet, tmp_path):
    space = tiny_supernet.search_space
    maximum = count_parameters(tiny_supernet.config, space.uniform(48, 2, 2.0, 3))
    score = Counted()
    result = search(tiny_supernet, score, tmp_path, limits=[Limit(Cost("parameters"), maximum)], **SMALL)
    anchors = {space.smallest(), Subnet.from_dict(tiny_supernet.config.default_subnet), space.largest()}
    for scored in result.subnets:
        assert scored.within_limits == (scored.costs["parameters"] <= maximum)
        assert scored.within_limits or scored.subnet in anchors
        assert scored.within_limits or not scored.on_front
    assert space.largest() in score.asked
    assert to_json(result)["limits"] == {"parameters": maximum}


def test_limit_nobody_can_meet_scores_nothing(tiny_supernet, tmp_path):
    score = Counted()
    with pytest.raises(ValueError, match=r"no subnet meets parameters <= 100: the smallest possible value is"):
        search(tiny_supernet, score, tmp_path / "out", limits=[Limit.parse("params", "100")], **SMALL)
    assert not score.asked
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stop_after", [0, 7, 13])
def test_interrupted_search_goes_on_as_if_it_had_not_been(tiny_supernet, tmp_path, stop_after, whole):
    score = Counted(stop_after)
    with pytest.raises(KeyboardInterrupt):
        search(tiny_supernet, score, tmp_path, **SMALL)
    early = json.loads((tmp_path / "pareto.json").read_text())
    assert len(early["scored"]) == stop_after  # what was found is reported all the same
    again = Counted()
    result = search(tiny_supernet, again, tmp_path, **SMALL)
    assert not set(again.asked) & set(score.asked)
    assert result.subnets == whole[1].subnets
    assert result.hypervolume == whole[1].hypervolume


def test_search_goes_on_after_an_error_of_the_score(tiny_supernet, tmp_path):
    def broken(subnet):
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        search(tiny_supernet, broken, tmp_path, **SMALL)
    assert len(search(tiny_supernet, analytic, tmp_path, **SMALL).hypervolume["random"]) == 10


def test_more_trials_continue_a_finished_search(tiny_supernet, tmp_path):
    first, second = Counted(), Counted()
    search(tiny_supernet, first, tmp_path, **SMALL)
    result = search(tiny_supernet, second, tmp_path, **SMALL | {"trials": 14})
    assert not set(first.asked) & set(second.asked)
    assert len(result.hypervolume["evolutionary"]) == 14


def test_another_seed_finds_others(tiny_supernet, tmp_path, whole):
    """That the same seed finds the same, interrupted or not, is tested above."""
    assert search(tiny_supernet, analytic, tmp_path, seed=4, **SMALL).subnets != whole[1].subnets


def test_another_supernet_or_other_settings_are_refused(tiny_supernet, make_model, whole):
    folder, *_ = whole
    other = make_model(LightHubertModel, seed=1)
    with pytest.raises(
        ValueError, match=r"holds a search of another supernet \(me/first.*choose another output folder"
    ):
        search(other, analytic, folder, **SMALL)
    for changes, message in [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"objectives": [Cost("macs")]}, r"objectives was \['loss', 'parameters'\], now"),
        ({"limits": [Limit.parse("params", "1G")]}, "limits was {}, now"),
        ({"population_size": 5}, "population_size was 4, now 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            search(tiny_supernet, analytic, folder, **{"supernet": "me/first"} | SMALL | changes)
    with pytest.raises(ValueError, match="score_fingerprint was '', now 'other audio'"):
        search(tiny_supernet, Score(analytic, fingerprint="other audio"), folder, supernet="me/first", **SMALL)


def test_starting_over_and_a_folder_of_something_else(tiny_supernet, tmp_path):
    search(tiny_supernet, analytic, tmp_path / "out", **SMALL)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"seed was 0, now 1; .*--overwrite"):
        search(tiny_supernet, analytic, tmp_path / "out", seed=1, **SMALL)
    assert search(tiny_supernet, analytic, tmp_path / "out", seed=1, overwrite=True, **SMALL).front
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"something else \(it has 'out', no study.db\)"):
            search(tiny_supernet, analytic, tmp_path, overwrite=overwrite, **SMALL)


def test_fingerprint_sees_every_weight_and_the_space(make_model):
    model = make_model(LightHubertForPreTraining)
    before = supernet_fingerprint(model)
    assert before == supernet_fingerprint(make_model(LightHubertForPreTraining))
    with torch.no_grad():
        model.prediction_head.weight[0, 0] += 1e-6
    changed = supernet_fingerprint(model)
    space = model.config.search_space | {"num_hidden_layers": [2, 3]}
    narrower = supernet_fingerprint(make_model(LightHubertForPreTraining, search_space=space))
    assert len({before, changed, narrower}) == 3
    assert supernet_fingerprint(model.to(torch.bfloat16)) not in (before, changed)


def test_a_score_to_be_maximised(tiny_supernet, tmp_path, whole):
    _, mirrored, _ = whole
    accuracy = Score(lambda subnet: -analytic(subnet), "accuracy", maximize=True)
    result = search(tiny_supernet, accuracy, tmp_path, **SMALL)
    assert [s.subnet for s in result.front] == [s.subnet for s in mirrored.front]
    assert result.hypervolume == mirrored.hypervolume
    data = json.loads((tmp_path / "pareto.json").read_text())
    assert data["objectives"] == ["accuracy", "parameters"]
    assert data["scored"][0]["accuracy"] == -analytic(result.subnets[0].subnet)


def test_nan_counts_as_the_worst(tiny_supernet, tmp_path, caplog):
    space = tiny_supernet.search_space
    with caplog.at_level(logging.WARNING):
        result = search(tiny_supernet, lambda s: math.nan if s == space.smallest() else analytic(s), tmp_path, **SMALL)
    worst = next(scored for scored in result.subnets if scored.subnet == space.smallest())
    assert worst.score == math.inf
    assert not worst.on_front
    assert "NaN" in caplog.text
    assert json.loads((tmp_path / "pareto.json").read_text())["scored"][0]["loss"] is None


def test_wrong_settings(tiny_supernet, make_model, tmp_path):
    for changes, message in [
        ({"trials": 7}, "trials must be at least 8"),
        ({"population_size": 1}, "population_size must be at least 2"),
        ({"algorithms": ["simulated annealing"]}, "algorithms must be of"),
        ({"algorithms": []}, "algorithms must be of"),
        ({"extract": -1}, "extract is a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            search(tiny_supernet, analytic, tmp_path, **SMALL | changes)
    with pytest.raises(ValueError, match="this model is static"):
        search(make_model(LightHubertModel, search_space=None), analytic, tmp_path, **SMALL)
    search(tiny_supernet, analytic, tmp_path / "random", algorithms=["random"], **SMALL | {"trials": 3})


def test_measured_costs_as_objective_and_limit(tiny_supernet, tmp_path):
    latency, memory = Cost("latency", 0.3, 2), Cost("memory", 0.3, 2)
    options = {"objectives": [latency], "limits": [Limit(memory, 1e9)], **SMALL}
    result = search(tiny_supernet, analytic, tmp_path, **options)
    table = result.tables["latency@2x0.3s"]
    for scored in result.subnets:
        assert scored.costs["latency@2x0.3s"] == table.latency_ms(scored.subnet)
        assert scored.costs["memory@2x0.3s"] == table.peak_memory(scored.subnet)
    before = (tmp_path / "latency@2x0.3s.json").read_text()
    search(tiny_supernet, analytic, tmp_path, **options)
    assert (tmp_path / "latency@2x0.3s.json").read_text() == before  # not measured again
    data = json.loads((tmp_path / "pareto.json").read_text())
    assert data["latency_error"] == {"latency@2x0.3s": table.median_error}
    first = data["scored"][0]
    assert first["latency_ms"] == first["costs"]["latency@2x0.3s"]
    assert first["latency"]["milliseconds_per_second"] == pytest.approx(first["latency_ms"] / 0.6)


def known_table(tiny_config, *errors):
    """A latency table that was measured with these errors, of prices as good as any."""
    table = LatencyTable.measure(tiny_config, 0.3, rounds=1, checks=0, progress=False)
    return replace(table, errors=errors)


@pytest.fixture
def measured(monkeypatch, tiny_config):
    """`measured(*errors)`: tables come with these median errors, one after the other; returns those taken so far."""

    def give(*errors):
        tables, taken = [known_table(tiny_config, error) for error in errors], []
        monkeypatch.setattr(latency._Measurement, "table", lambda *_: taken.append(tables[len(taken)]) or taken[-1])
        return taken

    return give


def test_a_bad_latency_table_is_measured_again(measured, tiny_supernet, tmp_path, caplog):
    taken = measured(0.168, -0.05)
    options = {"limits": [Limit(Cost("latency", 0.3), 1e9)], **SMALL}
    result = search(tiny_supernet, analytic, tmp_path, **options)
    assert len(taken) == 2
    assert result.tables["latency@0.3s"].median_error == 0.05
    assert "measured again" in caplog.text
    assert not result.warnings
    assert json.loads((tmp_path / "pareto.json").read_text())["warnings"] == []


def test_a_latency_table_that_stays_bad_is_said_loudly(measured, tiny_supernet, tmp_path, caplog):
    taken = measured(0.3, 0.168, 0.2)
    options = {"limits": [Limit(Cost("latency", 0.3), 1e9)], **SMALL}
    result = search(tiny_supernet, analytic, tmp_path, **options)
    assert len(taken) == 3
    (warning,) = result.warnings
    assert "latency@0.3s is not to be relied on: its predictions are off by 17%" in warning
    assert warning in caplog.text
    assert f"WARNING: {warning}" in describe_search(result)
    data = json.loads((tmp_path / "pareto.json").read_text())
    assert data["warnings"] == [warning]
    assert "median error 17%" in data["scored"][0]["latency"]["command"]
    caplog.clear()
    again = search(tiny_supernet, analytic, tmp_path, **options | {"trials": 11})  # judged by the same table
    assert (len(taken), again.warnings) == (3, (warning,))
    assert warning in caplog.text


def test_the_console_names_the_costs_and_what_no_model_scores(measured, tiny_supernet, tmp_path, monkeypatch):
    measured(0.01)
    drawn = []
    monkeypatch.setattr(report, "_png", lambda result, cost: drawn.append(cost) or b"")
    limit = Limit(Cost("latency", 0.3), 1e9)
    score = Score(analytic, baseline=0.8125)
    result = search(tiny_supernet, score, tmp_path, limits=[limit], plot=Cost("latency", 0.3), **SMALL)
    lines = describe_search(result).splitlines()
    assert len(lines) == len(result.front) + 1
    for line, found in zip(lines, result.front):
        assert f"latency@0.3s {format_cost('latency', found.costs['latency@0.3s'])}" in line
        assert f"parameters {format_cost('parameters', found.costs['parameters'])}" in line
    assert lines[-1] == "always predicting the mean: loss 0.8125"
    assert set(drawn) == {"latency@0.3s"}
    assert json.loads((tmp_path / "pareto.json").read_text())["baseline"] == 0.8125


def test_picture_marks_what_is_over_the_limit(whole, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    for own in (Axes.scatter, Axes.axvline, Axes.axhline):

        def remember(axes, *args, own=own, **options):
            drawn.append((options["label"], args))
            return own(axes, *args, **options)

        monkeypatch.setattr(Axes, own.__name__, remember)
    result = whole[1]
    limit = sorted(scored.costs["macs@10s"] for scored in result.subnets)[3]
    subnets = tuple(replace(s, within_limits=s.costs["macs@10s"] <= limit) for s in result.subnets)
    settings = result.settings | {"limits": {"macs@10s": limit}}
    changed = replace(result, subnets=subnets, settings=settings, baseline=2.0)
    assert DRAW(changed, "macs@10s").startswith(b"\x89PNG")
    marks = dict(drawn)
    assert list(marks["over a limit"][0]) == [s.costs["macs@10s"] for s in subnets if s.costs["macs@10s"] > limit]
    assert all(x <= limit for name in ("evolutionary", "random") for x in marks[name][0])
    assert marks["limit"] == (limit,)
    assert marks["always the mean"] == (2.0,)


def test_report(tiny_supernet, tmp_path):
    result = search(tiny_supernet, analytic, tmp_path, supernet="</script><b>", revision="abc", seed=7, **SMALL)
    data = json.loads((tmp_path / "pareto.json").read_text())
    assert data == json.loads(json.dumps(to_json(result)))
    assert (data["supernet"], data["revision"], data["seed"]) == ("</script><b>", "abc", 7)
    assert data["fingerprint"] == supernet_fingerprint(tiny_supernet)
    assert [Subnet.from_dict(entry["subnet"]) for entry in data["scored"]] == [s.subnet for s in result.subnets]
    assert [entry["name"] for entry in data["subnets"]] == [scored.name for scored in result.front]
    rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
    assert [float(row["loss"]) for row in rows] == [scored.score for scored in result.subnets]
    assert [row["on_front"] == "True" for row in rows] == [scored.on_front for scored in result.subnets]
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_extracted_subnets_are_models_that_compute_the_same(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # or the client waits for a Hub
    model = make_model(LightHubertForPreTraining)
    result = search(model, analytic, tmp_path, extract=3, supernet="me/supernet", **SMALL)
    extracted = [scored for scored in result.subnets if scored.folder]
    assert len(extracted) == 3
    assert {extracted[0].name, extracted[-1].name} == {result.front[0].name, result.front[-1].name}
    audio = torch.randn(1, 4000)
    for scored in extracted:
        loaded = LightHubertModel.from_pretrained(tmp_path / scored.folder)
        assert loaded.active_subnet == scored.subnet
        with torch.no_grad(), model.subnet_activated(scored.subnet):
            expected = model.lighthubert.eval()(audio).last_hidden_state
            assert torch.equal(loaded.eval()(audio).last_hidden_state, expected)
    data = json.loads((tmp_path / "pareto.json").read_text())
    assert [entry["folder"] for entry in data["subnets"]] == [scored.folder for scored in extracted]
    again = search(model, analytic, tmp_path, extract=2, supernet="me/supernet", **SMALL)
    assert len([scored for scored in again.subnets if scored.folder]) == 2


def test_one_number_of_operations_and_no_prediction_called_measured(measured, tiny_supernet, tmp_path):
    """In the search's files, on the card, from `profile` and from the counter: of clips of 10 s."""
    measured(0.02)
    result = search(tiny_supernet, analytic, tmp_path, limits=[Limit(Cost("latency", 0.3), 1e9)], extract=1, **SMALL)
    (entry,) = json.loads((tmp_path / "pareto.json").read_text())["subnets"]
    card = CardFacts.load(tmp_path / entry["folder"] / "model_card.json")
    model = LightHubertModel.from_pretrained(tmp_path / entry["folder"])
    row = profile(model, [10.0], repeats=1, progress=False).rows[0]
    counted = macs_per_second(tiny_supernet.config, Subnet.from_dict(entry["subnet"]))
    assert entry["macs_per_second"] == entry["costs"]["macs@10s"] == card.macs_per_second == counted
    assert round(row.macs / 10) == counted
    assert card.loss == entry["loss"] == next(s.score for s in result.subnets if s.folder)
    readme = (tmp_path / entry["folder"] / "README.md").read_text()
    assert "predicted from times of its parts" in readme
    assert "median error 2%" in readme
    assert "ms per second of audio, measured" not in readme


def test_study_opens_in_optuna(whole):
    study = optuna.load_study(study_name="evolutionary", storage=f"sqlite:///{whole[0] / 'study.db'}")
    assert study.metric_names == ["loss", "parameters"]
    frame = study.trials_dataframe()
    assert len(frame) == 10
    assert {"params_hidden_size", "params_ffn_ratio_0", "user_attrs_subnet", "values_loss"} <= set(frame.columns)
    assert study.best_trials


@pytest.mark.parametrize(
    ("text", "value"), [("def width(subnet):\n    return subnet.hidden_size\n", 48), ("width = len", None)]
)
def test_custom_score_from_a_file(tmp_path, text, value):
    (tmp_path / "scores.py").write_text(text)
    score = Score.load(f"{tmp_path / 'scores.py'}:width", maximize=True)
    assert (score.name, score.maximize) == ("width", True)
    if value is not None:
        assert score.function(Subnet(48, (1,), (96,))) == value


def test_custom_score_from_a_module():
    assert Score.load("math:sqrt").function(9) == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sqrt", "cannot read the score 'sqrt'"),
        ("math:", "cannot read the score"),
        ("math:nothing", "math has no function nothing"),
        ("math:pi", "math has no function pi"),
        ("no_such_module:f", "cannot import no_such_module"),
        ("missing.py:f", "there is no file of a score missing.py"),
    ],
)
def test_custom_score_that_cannot_be_loaded(reference, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Score.load(reference)


@pytest.mark.parametrize("text", ["def (", "1 / 0", "import no_such_module", "raise RuntimeError"])
def test_a_file_of_a_score_that_fails_is_named(tmp_path, text):
    (tmp_path / "scores.py").write_text(text)
    with pytest.raises(ValueError, match=r"cannot import .*scores\.py for the score width: \w+Error"):
        Score.load(f"{tmp_path / 'scores.py'}:width")


@pytest.mark.parametrize("text", ["1 / 0", "'x'", "None", "{}['x']"])
def test_a_score_that_fails_is_named_with_its_subnet(tmp_path, text):
    (tmp_path / "scores.py").write_text(f"def width(subnet):\n    return {text}\n")
    with pytest.raises(ValueError, match=r"the score .*scores\.py:width failed for 1 layers?, 48 wide.*: \w+Error"):
        Score.load(f"{tmp_path / 'scores.py'}:width").function(Subnet(48, (1,), (96,)))


def start(model, tmp_path, trials=16, algorithms=("evolutionary", "random"), population=5) -> multiprocessing.Process:
    """A search in a process of its own, forked to begin at once; its score writes down what it is asked."""

    def logged(subnet):
        with (tmp_path / "log").open("a") as file:
            file.write(subnet.key + "\n")
        time.sleep(0.05)
        return analytic(subnet)

    settings = {"trials": trials, "population_size": population, "algorithms": algorithms, "progress": False}
    process = multiprocessing.get_context("fork").Process(
        target=search, args=(model, logged, tmp_path / "out"), kwargs=settings
    )
    process.start()
    return process


def finish(processes):
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_processes_share_a_search(tiny_supernet, tmp_path):
    finish([start(tiny_supernet, tmp_path) for _ in range(2)])
    keys = (tmp_path / "log").read_text().split()
    data = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert len(set(keys)) == len(data["scored"])
    assert len(keys) == len(set(keys))
    assert all(count >= 16 for count in data["trials"].values())
    assert not list((tmp_path / "out").glob(".*"))


def test_a_subnet_that_two_algorithms_draw_at_once_is_scored_once(tiny_supernet, tmp_path):
    """They begin with the same subnets."""
    finish([start(tiny_supernet, tmp_path, 10, (algorithm,)) for algorithm in ("evolutionary", "random")])
    keys = (tmp_path / "log").read_text().split()
    data = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert data["trials"] == {"evolutionary": 10, "random": 10}
    assert len(keys) == len(set(keys)) == len(data["scored"]) < 20


@pytest.mark.parametrize("scored", [1, 14])
def test_killed_search_goes_on_as_if_it_had_not_been(tiny_supernet, tmp_path, scored, whole):
    """Killed while it scores the smallest subnet, without which no search ends, and later."""
    process = start(tiny_supernet, tmp_path, SMALL["trials"], population=SMALL["population_size"])
    log, before = tmp_path / "log", []
    while process.is_alive() and len(before) < scored:
        time.sleep(0.01)
        before = log.read_text().split() if log.exists() else []
    process.kill()
    process.join()
    before = log.read_text().split()
    score = Counted()
    result = search(tiny_supernet, score, tmp_path / "out", **SMALL)
    # At most the subnet that was being scored when the process died is scored again.
    assert len(set(before) & {subnet.key for subnet in score.asked}) <= 1
    assert (result.subnets, result.hypervolume) == (whole[1].subnets, whole[1].hypervolume)
    assert not list((tmp_path / "out").glob(".*"))
