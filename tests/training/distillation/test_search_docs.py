"""The Python in docs/search.md runs as it stands, on a tiny supernet, teacher and corpus."""

import torch

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace

from ...guides import ROOT, blocks
from .tiny import TINY, TINY_SPACE

GUIDE = ROOT / "docs" / "search.md"


def test_docs_search(tiny_corpus, tiny_teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = LightHubertConfig(**TINY, head_dim=16, search_space=SearchSpace(**TINY_SPACE), target_size=32)
    LightHubertForPreTraining(config).save_pretrained("SUPERNET")
    (block,) = (block for block in blocks(GUIDE, "python") if not block.why)
    script = block.source
    for name, value in {
        '"facebook/hubert-base-ls960"': repr(str(tiny_teacher)),
        '"my-validation-audio"': repr(str(tiny_corpus)),
        'objectives=[Cost.parse("latency@10s")]': 'objectives=[Cost.parse("macs@1s")], trials=6, population_size=3',
        "max_examples=200": "max_examples=2",
    }.items():
        assert name in script
        script = script.replace(name, value)
    exec(compile("\n" * block.line + script, "search.md", "exec"), {})
    assert "layers" in capsys.readouterr().out
    assert (tmp_path / "OUT" / "pareto.json").exists()
