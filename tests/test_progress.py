"""Progress is a bar where one can be drawn, lines elsewhere; nothing of a bar stays behind."""

import io
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest

from pfc import progress
from pfc.progress import Step, shown


class Terminal(io.StringIO):
    """A terminal: what was drawn, in order, each drawing over the last."""

    def isatty(self):
        return True

    @property
    def drawn(self):
        return [text.rstrip() for text in self.getvalue().split("\r")]


def test_a_terminal_shows_a_bar_and_then_nothing(capsys):
    with redirect_stderr(Terminal()) as terminal, shown("work", 4) as step:
        assert isinstance(step, Step)
        assert terminal.drawn[-1].startswith("work:   0%|")
        time.sleep(0.15)  # longer than between two drawings
        step(2)
        assert terminal.drawn[-1].startswith("work:  50%|")
        assert "| 2/4 [" in terminal.drawn[-1]
    assert terminal.drawn[-2:] == ["", ""]
    assert "\n" not in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_new_note_is_drawn_at_once():
    with redirect_stderr(Terminal()) as terminal, shown("work", 4) as step:
        step(0, "first")
        assert terminal.drawn[-1].endswith(", first]")
        step(1, "second")
        assert "| 1/4 [" in terminal.drawn[-1]
        assert terminal.drawn[-1].endswith(", second]")


def test_many_steps_are_few_drawings():
    with redirect_stderr(Terminal()) as terminal, shown("work", 10_000) as step:
        for done in range(10_000):
            step(done, "same")
        assert len(terminal.drawn) < 1000


def test_a_bar_may_have_no_total_and_go_back():
    with redirect_stderr(Terminal()) as terminal, shown("work", None) as step:
        step(3, "here")
        assert terminal.drawn[-1].startswith("work: 3it [")
        step(1, "there")
        assert terminal.drawn[-1].startswith("work: 1it [")
    assert terminal.drawn[-1] == ""


def test_a_bar_is_removed_when_the_work_fails():
    with redirect_stderr(Terminal()) as terminal:
        with pytest.raises(ZeroDivisionError), shown("work", 4) as step:
            step(1 // 0, "first")
    assert terminal.drawn[-1] == ""


def test_what_is_printed_meanwhile_stands_above_the_bar():
    with redirect_stderr(Terminal()) as terminal, redirect_stdout(Terminal()) as out:
        with shown("work", 4) as step:
            step(1, "first")
            print("to the", "output")
            print("to the", "error", file=sys.stderr)
            assert terminal.drawn[-1].endswith(", first]")
        print("afterwards")
    lines = [text for text in terminal.drawn if "\n" in text or text.startswith("to the")]
    assert lines == ["to the output", "to the error"]
    assert terminal.drawn[-1] == ""
    assert out.getvalue() == "afterwards\n"


def test_an_output_that_is_no_terminal_is_left_alone(capsys):
    with redirect_stderr(Terminal()) as terminal, shown("work", 4):
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in terminal.getvalue()


def test_under_a_bar_there_are_lines(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with redirect_stderr(Terminal()) as terminal:
        with shown("outer", 2) as outer, shown("inner", 2) as inner:
            inner(1, "one")
            outer(1, "two")
    assert "inner: 1 of 2 one, 0 s left" in terminal.drawn
    assert terminal.drawn[-1] == ""


def test_nothing_is_shown_if_not_enabled():
    with redirect_stderr(Terminal()) as terminal, shown("work", 4, enabled=False) as step:
        step(1, "note")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("total", "line"), [(4, "work: 2 of 4 note, 0 s left\n"), (None, "work: 2 note\n")]
)
def test_elsewhere_there_are_lines(monkeypatch, capsys, total, line):
    with shown("work", total) as step:
        step(1, "too early")
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with shown("work", total) as step:
        step(2, "note")
    assert capsys.readouterr() == ("", line)


def test_the_library_of_bars_is_loaded_by_the_first_bar():
    code = "import sys, pfc.progress; print([m for m in ('tqdm', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


NOTEBOOK = """
import io, sys, types

class OutStream(io.StringIO):
    __module__ = "ipykernel.iostream"

class Widget:
    bar_style = ""

    def __init__(self, children=(), **state):
        self.children, self.layout = children, types.SimpleNamespace()
        self.style = types.SimpleNamespace()
        vars(self).update(state)
        made.append(self)

    def close(self):
        self.closed = True

def module(name, **names):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)

made, displayed, widgets = [], [], sys.argv[1] == "widgets"
module("ipykernel.zmqshell")
module("IPython", get_ipython=lambda: None)
module("IPython.display", display=displayed.append)
module("ipywidgets", **(dict(HTML=Widget, FloatProgress=Widget, HBox=Widget) if widgets else {}))
real, sys.stderr = sys.stderr, OutStream()
from pfc.progress import shown

with shown("work", 4) as step:
    step(3, "note")
    text = made[2].value if widgets else sys.stderr.getvalue()
    assert "3/4" in text and "note" in text, text
drawn, sys.stderr = sys.stderr.getvalue().split("\\r"), real
assert not drawn[0], f"a warning before the first bar: {drawn[0]}"
if widgets:
    (shown,) = displayed
    assert shown.closed and shown.layout.visibility == "hidden" and drawn == [""]
    assert [part.bar_style for part in made] == [""] * 4
else:
    assert not displayed and not drawn[-1].strip()
"""


@pytest.mark.parametrize("kind", ["widgets", "text"])
def test_a_notebook_shows_a_widget_or_else_text_without_a_warning(kind):
    command = [sys.executable, "-W", "always", "-c", NOTEBOOK, kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
