"""Show a docstring's ``Example:`` as code: the documentation tool knows only ``Examples:``."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Rename the section before it is parsed; otherwise its ``>>>`` become quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename in one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
