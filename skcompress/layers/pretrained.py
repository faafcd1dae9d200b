"""Models of transformers save themselves: compressed ones with what they have become.

`save_pretrained` asks a quantiser, where the model has one; ours is registered as `skcompress`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..errors import ResizeError
from ..protocols import Factorized
from .narrowed import wide_shapes
from .tied_names import rename_ties

METHOD = "skcompress"


def settle(model: nn.Module, result: nn.Module) -> None:
    """Bring what `result`, a copy of `model` with other layers, knows of itself up to date."""
    rename_ties(model, result)
    let_save(result)


def let_save(model: nn.Module) -> None:
    """Let every model of transformers within a model save itself as it is now, in place."""
    for module in model.modules():
        if is_pretrained(module):
            _say_who_saves(module)
            _refuse_resizing(module)


def is_pretrained(module: Any) -> bool:
    """Whether a module is a model of transformers, of a version that can save compressed ones."""
    cls = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    # Where nobody imported transformers, no module can be one of its models.
    return cls is not None and isinstance(module, cls) and METHOD in _auto().AUTO_QUANTIZER_MAPPING


def _auto() -> Any:
    return sys.modules["transformers.quantizers.auto"]


def _say_who_saves(model: Any) -> None:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and quantizer.quantization_config.quant_method != METHOD:
        return
    if any(isinstance(part, Factorized) or wide_shapes(part) for part in model.modules()):
        config = _auto().AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD]()
        model.hf_quantizer = _auto().AUTO_QUANTIZER_MAPPING[METHOD](config)
    elif quantizer is not None:
        quantizer.remove_quantization_config(model)
        vars(model).pop("is_quantized", None)
        vars(model).pop("_weight_conversions", None)


class _NoResizing:
    """In place of `resize_token_embeddings`, which would resize one of two layers, then fail."""

    def __init__(self, names: Sequence[str]):
        self.names = names

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise ResizeError(self.names)


def _refuse_resizing(model: Any) -> None:
    resized = [_given(model.get_input_embeddings), _given(model.get_output_embeddings)]
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Factorized) and any(module is layer for layer in resized)
    ]
    vars(model).pop("resize_token_embeddings", None)
    if names:
        model.resize_token_embeddings = _NoResizing(names)


def _given(getter: Callable[[], Any]) -> Any:
    try:
        return getter()
    except (NotImplementedError, AttributeError):  # no text goes into such a model, or out of it
        return None
