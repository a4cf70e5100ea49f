"""Whose folder it is: what goes on, what is refused, and what starting over removes."""

import shutil

import pytest
from accelerate import PartialState

from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.recipes.loading import parse_recipe
from lighthubert_hf.training.runs.checkpoints import checkpoint_folder, mark_complete, rotate
from lighthubert_hf.training.runs.run_folder import claim_folder


@pytest.fixture(autouse=True, scope="module")
def _one_process():
    PartialState(cpu=True)


def make_recipe(folder, **changes):
    data = {
        "name": "test",
        "output_dir": str(folder),
        "teacher": {"path": "somebody/teacher"},
        "data": {"sources": [{"path": "somebody/speech"}]},
        "training": {"steps": 10},
    }
    return parse_recipe(DistillationRecipe, data | changes)


def save(folder, step=3, processes=1):
    checkpoint = checkpoint_folder(folder / "checkpoints", step)
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"1234")
    mark_complete(checkpoint, processes)
    return checkpoint


def test_the_same_command_goes_on_from_the_newest_complete_checkpoint(tmp_path):
    recipe = make_recipe(tmp_path / "run")
    assert claim_folder(recipe) is None
    save(tmp_path / "run", 3)
    newest = save(tmp_path / "run", 12)
    (save(tmp_path / "run", 100) / "weights").write_bytes(b"12")  # cut short
    assert claim_folder(recipe) == newest
    assert claim_folder(make_recipe(tmp_path / "run", logging={"every": 3}, name="renamed")) == newest


def test_before_the_first_checkpoint_another_recipe_may_take_the_folder(tmp_path):
    claim_folder(make_recipe(tmp_path / "run", teacher={"path": "sombody/teacher"}))
    (tmp_path / "run" / "synthetic_speech").mkdir()
    assert claim_folder(make_recipe(tmp_path / "run")) is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_another_run_is_refused_in_one_line_and_overwritten_when_told(tmp_path):
    folder = tmp_path / "run"
    claim_folder(make_recipe(folder))
    save(folder)
    (folder / "notes.txt").write_text("mine")
    other = make_recipe(folder, seed=7)
    with pytest.raises(
        ValueError, match=r"seed=0, the recipe says 7; .*another output_dir, or .*--overwrite"
    ) as error:
        claim_folder(other)
    assert "\n" not in str(error.value)
    assert claim_folder(other, overwrite=True) is None
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "recipe.yaml"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(it has 'thesis.txt'"):
        claim_folder(make_recipe(tmp_path), overwrite=overwrite)
    with pytest.raises(ValueError, match="is a file"):
        claim_folder(make_recipe(tmp_path / "thesis.txt"), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_paths_are_compared_by_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "speech", "other"):
        (tmp_path / name).mkdir()

    def recipe(folder, teacher, speech):
        return make_recipe(folder, teacher={"path": str(teacher)}, data={"sources": [{"path": str(speech)}]})

    claim_folder(recipe("run", "teacher", "speech"))
    saved = save(tmp_path / "run")
    assert claim_folder(recipe(tmp_path / "run", tmp_path / "teacher", "./speech")) == saved
    with pytest.raises(ValueError, match=r"teacher\.path='(teacher|.*/teacher)', the recipe says 'other'"):
        claim_folder(recipe("run", "other", "speech"))


def test_a_run_may_be_moved_or_copied_with_what_lies_beside_it(tmp_path):
    def recipe(home, teacher="teacher"):
        return make_recipe(home / "run", teacher={"path": str(home / teacher)})

    (tmp_path / "one" / "teacher").mkdir(parents=True)
    claim_folder(recipe(tmp_path / "one"))
    save(tmp_path / "one" / "run")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = checkpoint_folder(tmp_path / "two" / "run" / "checkpoints", 3)
    assert claim_folder(recipe(tmp_path / "two")) == copy
    (tmp_path / "two" / "another").mkdir()
    with pytest.raises(ValueError, match=r"teacher\.path"):
        claim_folder(recipe(tmp_path / "two", "another"))


def test_accumulation_may_change_with_the_number_of_processes_only(tmp_path):
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        claim_folder(make_recipe(folder))
        saved = save(folder, processes=processes)
        more = make_recipe(folder, training={"steps": 10, "accumulation": 2})
        if processes == 2:
            assert claim_folder(more) == saved
        else:
            with pytest.raises(ValueError, match=r"training\.accumulation=1, the recipe says 2"):
                claim_folder(more)


def test_rotation_spares_what_is_in_use(tmp_path):
    folders = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    rotate(tmp_path / "checkpoints", 2, in_use=folders[0])
    assert [folder.exists() for folder in folders] == [True, False, True, True]
