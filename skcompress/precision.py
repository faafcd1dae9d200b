"""Products of float32 matrices in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices as float32, whatever shortcut (TF32, bfloat16) is allowed.

    torch has these switches for the whole process only: they are left alone where nobody
    allowed a shortcut, and put back where somebody did.
    """
    overall = _overall()
    switches = _switches()
    before = [switch.fp32_precision for switch in switches]
    if overall in (None, "highest") and all(value in ("none", "ieee") for value in before):
        yield
        return
    try:
        if overall is not None:
            torch.set_float32_matmul_precision("highest")  # sets the newer switches too
        else:
            for switch in switches:
                switch.fp32_precision = "ieee"
        yield
    finally:
        if overall is not None:
            torch.set_float32_matmul_precision(overall)
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _overall() -> str | None:
    """Read torch's older switch; None where only the newer ones have been used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to read what the newer ones contradict
        return None


def _switches() -> list[Any]:
    """List the switches by device that torch has since 2.9."""
    backends: tuple[Any, ...] = (torch.backends.cuda, torch.backends.mkldnn)
    found = [getattr(backend, "matmul", None) for backend in backends]
    return [switch for switch in found if hasattr(switch, "fp32_precision")]
