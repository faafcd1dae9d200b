"""What does not hold, of all that `test_matrix.py` tries; the table of docs/compatibility.md."""

from __future__ import annotations

from dataclasses import dataclass

from compat_cases import RECURRENT


@dataclass(frozen=True)
class Known:
    """A use that fails, for layers of some kinds and forms.

    message : what the error says; alike : whether torch's own dense layer fails too
    called, layers, reason, instead : what the documentation says
    """

    use: str
    kinds: tuple[str, ...]
    message: str
    alike: bool
    called: str
    layers: str
    reason: str
    instead: str
    forms: tuple[str, ...] = ("plain", "pivot")

    @property
    def row(self) -> str:
        """Give the line of the table."""
        return f"| {self.called} | {self.layers} | {self.reason} | {self.instead} |"


KNOWN = (
    Known(
        "export_of_any_length", RECURRENT, "specialized it to be a constant", True,
        "`torch.export` and ONNX, with any length of sequences", "LSTM, GRU, RNN",
        "torch writes a recurrence out step by step",
        "sequences of one length, padded",
    ),
    Known(
        "compiled", ("lstm",), "tensors_saved_with_vc_check", True,
        "`torch.compile`, training", "LSTM",
        "torch cannot compile the backward pass of any LSTM, its own included",
        "compile under `torch.no_grad()`; for training, `torch.compiler.disable(layer)`",
    ),
    Known(
        "script", RECURRENT, "'dict' cannot be used as a value", False,
        "`torch.jit.script`", "LSTM, GRU, RNN",
        "their factors are multiplied out at every call, in Python that TorchScript does not know",
        "`torch.jit.trace`, `torch.export`, or `skcompress.to_plain(model, dense=True)`",
    ),
    Known(
        "script", ("experts",), "has no attribute '_parameters'", False,
        "`torch.jit.script`", "experts",
        "the gate is called as the class of the dense experts has it, whatever that is",
        "`torch.export`",
    ),
    Known(
        "script", ("convolution",), "'dict' cannot be used as a value", False,
        "`torch.jit.script`", "convolutions with a sparse term",
        "torch's functions for each number of axes are looked up when called",
        "`torch.jit.trace`, `torch.export`, or `skcompress.to_plain(model, dense=True)`",
        forms=("sparse",),
    ),
    Known(
        "vmap", RECURRENT, "Batching rule not implemented for aten::", True,
        "`torch.func.vmap`", "LSTM, GRU, RNN",
        "torch has no batching rule for its recurrent kernels",
        "more examples along the batch axis",
    ),
    Known(
        "vmap", ("experts",), "batching operators that can output dynamic shape", True,
        "`torch.func.vmap`", "experts",
        "which tokens an expert gets is known only when it is called",
        "more tokens along the first axis",
    ),
)  # fmt: skip


def known(use: str, kind: str, form: str) -> Known | None:
    """Find what is known not to hold."""
    found = [k for k in KNOWN if use == k.use and kind in k.kinds and form in k.forms]
    assert len(found) <= 1
    return found[0] if found else None
