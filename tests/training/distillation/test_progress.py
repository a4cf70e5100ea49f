"""The log of a run, also after accidents."""

import json

from lighthubert_hf.training.distillation.progress import read_log


def test_damaged_lines_of_a_log_are_named_and_left_out(tmp_path, caplog):
    good = [{"step": step, "loss": 1.0} for step in range(4)]
    lines = [*map(json.dumps, good), "[1]", "{}", '{"step": "1"}', "\0" * 20, "[" * 9999, json.dumps(good[0])]
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + b'{"step": 5, "lo')
    assert read_log(tmp_path / "log.jsonl") == [*good, good[0]]
    assert [f"line {number} " in caplog.text for number in range(1, 13)] == [False] * 4 + [True] * 5 + [
        False, True, False
    ]  # fmt: skip
    assert read_log(tmp_path / "none.jsonl") == []
