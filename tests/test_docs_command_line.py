"""docs/command-line.md is true: its commands run, one after another."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from documents import sections

from skcompress.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = PAGE.read_text(encoding="utf-8")
    ((_, module),) = sections(text)["The command line"]
    Path("nets.py").write_text(module)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), (command, capsys.readouterr().err)
        assert capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    assert {"small.safetensors", "smaller.safetensors", "best.safetensors"} < {
        p.name for p in tmp_path.iterdir()
    }
