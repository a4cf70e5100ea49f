"""The Python in docs/publishing.md runs as it stands, one part after the other."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "publishing.md"


def test_docs_publishing(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    parts = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(parts) == 6
    namespace = {}
    for part in parts:
        # Nobody answers the question whether code may be run: here it is the package's own.
        exec(compile(part, str(DOCUMENT), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "['acme/light-119k', 'acme/light-649k']" in printed
    assert set(hub.store.repos) >= {"acme/light-tiny", "acme/light-large", "acme/light-supernet"}
    assert hub.store.repos["acme/light-tiny"].private
