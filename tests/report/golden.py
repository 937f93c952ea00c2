"""Golden files: what a face looked like when somebody last looked at it.

``RENEW_GOLDEN=1 pytest tests/report`` writes them anew; read the difference before committing it.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden"


def assert_golden(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("RENEW_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.is_file(), f"no golden file {name}: write it with RENEW_GOLDEN=1"
    assert text == path.read_text(encoding="utf-8"), f"{name} changed: see RENEW_GOLDEN"
