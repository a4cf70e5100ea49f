"""docs/streaming.md: its Python runs, in a folder with the model that it names."""

from lighthubert_hf import LightHubertModel

from ..guides import ROOT, blocks


def test_the_guide_runs(make_model, tmp_path, monkeypatch):
    make_model(LightHubertModel).extract_subnet().save_pretrained(tmp_path / "subnet")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "streaming.md"}
    for block in blocks(ROOT / "docs" / "streaming.md", "python"):
        if not block.why:
            exec(compile("\n" * block.line + block.source, "streaming.md", "exec"), namespace)
    assert namespace["encoder"].streams == ("ben",)
