"""The page over HTTP: for this machine alone, and always the newest."""

import json
import threading

import httpx2
import pytest

from lighthubert_hf.explore.serving import ExploreServer


@pytest.fixture
def server(trained):
    with ExploreServer(trained) as started:
        threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True).start()
        yield started
        started.shutdown()


def test_newer_data_while_a_run_goes_on(server, trained):
    assert server.address.startswith("http://127.0.0.1:")
    page = httpx2.get(server.address)
    assert "const live = true;" in page.text
    assert httpx2.get(server.address + "data.json").json()["step"] == 20
    lines = (trained / "log.jsonl").read_text().splitlines()[:-1]
    (trained / "log.jsonl").write_text("\n".join([*lines, json.dumps({"step": 30, "loss": 0.1, "lr": 0.0})]) + "\n")
    assert httpx2.get(server.address + "data.json").json()["curves"]["loss"] == [[10, 0.5], [30, 0.1]]


def test_nothing_else_and_nobody_else(server, trained):
    assert httpx2.get(server.address + "log.jsonl").status_code == 404
    assert httpx2.get(server.address, headers={"Host": "evil.example"}).status_code == 403
    (trained / "log.jsonl").write_text("")
    answer = httpx2.get(server.address + "data.json")
    assert (answer.status_code, "has no line yet" in answer.text) == (503, True)
