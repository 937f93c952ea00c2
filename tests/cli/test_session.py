"""How an error is told. Oracle: the lines on the error stream."""

import pytest
import typer

from rightbatch.cli.session import session


@pytest.mark.parametrize("traceback", [False, True])
def test_a_traceback_of_another_process_is_shown_only_when_asked_for(capsys, traceback):
    error = ZeroDivisionError("by zero")
    error.add_note("while trying batch size 7")
    error.add_note("In the process of its own:\nTraceback (most recent call last):\n  there")
    with pytest.raises(typer.Exit, match="1"), session(None, as_json=False, traceback=traceback):
        raise error
    shown = capsys.readouterr().err
    assert "while trying batch size 7" in shown
    assert ("In the process of its own" in shown) == traceback
