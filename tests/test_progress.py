"""Progress: a bar on a terminal, in a log a line now and then, nothing of short work; figures that people read."""

import io
import sys

import pytest

from lighthubert_hf import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_short_work_leaves_nothing_in_a_log(capsys):
    assert list(progress.progress_bar(range(3), "working", unit="steps")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_long_work_leaves_a_line_now_and_then_in_a_log(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = progress.progress_bar(None, "working", total=1500, unit="steps")
    for done in (400, 400, 400, 300):
        bar.update(done)
        bar.set_postfix_str(f"loss {done / 1000}")
    bar.close()
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert 1 < len(lines) < 5
    assert all(line.startswith("working: ") and "of 1,500 steps" in line and "%" not in line for line in lines)
    assert "\r" not in text and "|" not in text


@pytest.mark.parametrize(
    ("total", "shown"), [(1500, "working:  83%|"), (None, "working: 1,250 utterances ["), (0.0, "working")]
)
def test_a_terminal_has_a_bar(monkeypatch, total, shown):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = progress.progress_bar(None, "working", total=total, unit="utterances")
    for _ in range(5):
        bar.update(250.0000001)  # a float is shown as a person would write it
    bar.close()
    text = sys.stderr.getvalue()
    assert shown in text and "?s" not in text and "0000" not in text


def test_nothing_is_shown_if_nothing_is_to_be(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress.progress_bar([1, 2], "working", unit="steps", shown=False)) == [1, 2]
    assert sys.stderr.getvalue() == ""
