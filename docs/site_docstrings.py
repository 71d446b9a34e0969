"""Sessions in docstrings: the site shows ``Example:`` as Python, as it shows ``Examples:``, and not as a note."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Sessions(Extension):
    """Gives the section its plural before the docstring is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every object of the sources."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
