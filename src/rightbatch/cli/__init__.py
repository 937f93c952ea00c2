"""The command line: parse, call one public function, render.

Words and progress go to standard error. Standard output gets the report, or with ``--json`` the
results file and nothing else. Exit codes: 0 done; 1 the task failed or nothing could be
recommended; 2 wrong usage; 130 interrupted.
"""

from rightbatch.cli.commands import app, main

__all__ = ["app", "main"]
