from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "README.md").read_text()


def test_code_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
