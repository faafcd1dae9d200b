"""Pages of documentation as blocks of code to be run."""

from __future__ import annotations

import re


def sections(text: str) -> dict[str, list[tuple[int, str]]]:
    """By heading, the first line's number and the source of each ```python block."""
    found: dict[str, list[tuple[int, str]]] = {}
    heading = ""
    for match in re.finditer(r"^#+ (.*?)$|^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] is not None:
            heading = match[1]
        else:
            line = text[: match.start(2)].count("\n") + 1
            found.setdefault(heading, []).append((line, match[2]))
    return found
