"""Files of every version of the format, as they were written then, are loaded."""

from __future__ import annotations

import kept
import pytest
import torch
from safetensors.torch import load_file

from skcompress import load
from skcompress.checkpoint.files import VERSION


@pytest.mark.parametrize("version", range(1, VERSION + 1))
@pytest.mark.parametrize("ending", [".safetensors", ""], ids=["file", "folder"])
def test_is_loaded(version, ending):
    model = load(kept.DATA / f"format{version}{ending}", kept.Network)
    expected = load_file(kept.DATA / f"format{version}.outputs.safetensors")["outputs"]
    with torch.no_grad():
        torch.testing.assert_close(model(kept.INPUTS), expected, rtol=1e-5, atol=1e-6)
    assert not model.training
    assert model.head[0].weight is model.embed[1].weight
    assert not any(p.requires_grad for p in model.recurrent.parameters())
    assert sum(p.requires_grad for p in model.parameters()) > 10
