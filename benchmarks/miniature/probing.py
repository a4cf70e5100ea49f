"""The parts that judge: probes on frozen features, how the loss ranks subnets, and the search."""

from typing import Any

from distilling import Workshop

from lighthubert_hf.costs.profiling import count_parameters
from lighthubert_hf.files import scratch_folder
from lighthubert_hf.search.costs import Cost, Limit
from lighthubert_hf.search.run import search
from lighthubert_hf.training.superb.harness import evaluate_model
from lighthubert_hf.training.superb.registry import KINDS
from lighthubert_hf.training.superb.settings import EvaluationSettings, SuperbData

TASKS = ("pr", "ks", "ic", "sid", "asv")


def probes(shop: Workshop) -> dict[str, Any]:
    """Scores of the teacher, of subnets cut from the supernets, and of the students trained alone."""
    stage1, stage2 = shop.model("stage1"), shop.model("stage2")
    named = shop.architecture.named_subnets()
    models: dict[str, Any] = {
        "teacher": str(shop.teacher),
        "stage 1, largest": stage1.lighthubert.extract_subnet(named["largest"]),
    }
    for name in ("largest", "71", "29"):
        models[f"stage 2, {name}"] = stage2.lighthubert.extract_subnet(named[name])
    models["stage 2 alone, 71"] = shop.model("stage2-alone").lighthubert.extract_subnet(named["71"])
    for name in ("71", "29"):
        static = shop.model(f"alone-{name}")
        models[f"alone, {name}"] = static.lighthubert.extract_subnet(static.search_space.largest())
    return {name: probe(shop, name, model) for name, model in models.items()}


def ranking(shop: Workshop) -> list[dict[str, Any]]:
    """Loss and probes of random subnets and of the named ones of the supernet of stage 2."""
    model = shop.model("stage2")
    score = shop.score(model, "test_sentences", shop.setting.scored_utterances)
    # Three of the named ones were probed before, under the names that `probes` gave them.
    subnets = {subnet: f"stage 2, {name}" for name, subnet in shop.architecture.named_subnets().items()}
    for subnet in shop.random_subnets(shop.setting.ranked_subnets, "ranked subnets"):
        subnets.setdefault(subnet, f"subnet {subnet.key}")
    rows = []
    for subnet, name in subnets.items():
        scores = probe(shop, name, model.lighthubert.extract_subnet(subnet))
        rows.append({"subnet": subnet.to_dict(), "loss": score(subnet), **scores})
    return rows


def evolution(shop: Workshop, supernet: str = "stage2") -> dict[str, Any]:
    """Both searches for the best subnet no larger than the default one; what they find is scored on new sentences."""
    setting, model = shop.setting, shop.model(supernet)
    default = shop.architecture.named_subnets()["default"]
    limit = count_parameters(model.config, default)
    found = search(
        model,
        shop.score(model, "validation", setting.search_utterances).as_score(),
        shop.folder("search"),
        limits=[Limit(Cost("parameters"), limit)],
        trials=setting.search_trials,
        population_size=setting.population_size,
        seed=shop.seed,
        progress=False,
    )
    fresh = shop.score(model, "test_sentences", setting.scored_utterances)

    def best(algorithm: str) -> dict[str, Any]:
        allowed = [entry for entry in found.subnets if entry.within_limits and algorithm in entry.found_by]
        chosen = min(allowed, key=lambda entry: entry.score)
        return {
            "subnet": chosen.subnet.to_dict(),
            "parameters": int(chosen.costs["parameters"]),
            "validation": chosen.score,
            "test": fresh(chosen.subnet),
            "hypervolume": found.hypervolume[algorithm][-1],
        }

    return {
        "limit": limit,
        "default": {"test": fresh(default), "subnet": default.to_dict(), "parameters": limit},
        "evolutionary": best("evolutionary"),
        "random": best("random"),
        "scored": len(found.subnets),
    }


def probe(shop: Workshop, name: str, model: Any) -> dict[str, Any]:
    """Scores by task, fractions: the task's own metric, and `parameters`. Finished tasks are not done again."""
    setting = shop.setting
    settings = EvaluationSettings(
        preset="tiny",
        rates={task: {"steps": steps} for task, steps in setting.probe_steps.items()},
        validations=1,
        seed=shop.seed,
        max_train_examples=setting.probe_max_train,
        max_eval_examples=setting.probe_max_test,
    )
    output = shop.folder("probes") / name.replace(", ", "-").replace(" ", "-")
    with scratch_folder(shop.folder("probes") / "features") as cache:  # half a gigabyte: not kept
        results = evaluate_model(model, TASKS, _data(shop), output, settings, cache=cache, progress=False)
    scores = {task: result["metrics"][KINDS[task].metrics[0].name] for task, result in results["tasks"].items()}
    return {"parameters": results["parameters"], "scores": scores}


def _data(shop: Workshop) -> SuperbData:
    """Voices are told apart on the corpus itself; verification on voices that nobody was trained on."""
    own = {task: {"path": str(shop.output / "tasks" / task), "validation": None} for task in ("pr", "ks", "ic")}
    voices = {"path": str(shop.corpus), "validation": None, "columns": {"label": "voice"}}
    return SuperbData(**own, sid=voices | {"test": "test_sentences"}, asv=voices | {"test": "test_voice"})
