"""The command line: parse, call one public function, render.

Words and progress go to standard error. Standard output gets the report, or with ``--json`` the
results file and nothing else. Exit codes: 0 done; 1 the task failed or nothing could be
recommended; 2 wrong usage; 130 interrupted.
"""

import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line, and leave at once when interrupted.

    The libraries take a second or more to import and again to tear down: a Ctrl-C during either
    is one line and the exit code, not a traceback.
    """
    code: int | str | None = INTERRUPTED
    try:
        from rightbatch.cli.commands import app

        app()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if code is None:
        code = 0
    if isinstance(code, int) and (launched or code == INTERRUPTED):
        # Of several ranks, the threads of the group may abort the interpreter's teardown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
