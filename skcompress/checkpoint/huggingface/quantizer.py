"""How transformers saves and loads compressed models: as one more of its quantisation methods.

Imported once transformers is, by whichever comes second. A quantiser of transformers may change a
model before its weights are loaded, which is where the stand-ins take their places; nothing here
has to do with fewer bits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...errors import ArchitectureError, CheckpointFileError
from ...layers import densify
from ...layers.pretrained import METHOD, settle
from ..contents import named_tensors
from ..loading import to_precision
from ..reading import Description
from ..rebuilding import restructured
from .structure import (
    VERSION,
    checked_structure,
    is_compressed,
    marked,
    markers,
    pretrained_structure,
    relocated,
)


class CompressedConfig(QuantizationConfigMixin):
    """What config.json has under `quantization_config`."""

    quant_method: Any

    def __init__(self, version: int = VERSION, structure: Any = None, **further: Any):
        self.quant_method = METHOD
        self.version = version
        self.structure = structure

    def get(self, key: str, default: Any = None) -> Any:
        """Answer as the dictionary in a file does: `from_pretrained(config=model.config)` asks."""
        return getattr(self, key, default)


class CompressedQuantizer(HfQuantizer):
    """Writes the structure into the configuration, and builds it again from there."""

    quantization_config: CompressedConfig

    is_trainable = True
    is_qat_trainable = True
    is_compileable = True

    def is_serializable(self) -> bool:
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ValueError(
                "from_pretrained compresses nothing: load the model without quantization_config, "
                "then SVDCompressor(rank=0.3).fit_transform(model)"
            )

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Called first of all by `save_pretrained`: the structure is that of this moment."""
        structure = pretrained_structure(model)
        vars(model.config).pop("quantization_config", None)
        if not is_compressed(structure):
            return None, {}
        self.quantization_config = CompressedConfig(structure=structure)
        model.config.quantization_config = self.quantization_config
        # What takes experts apart would take their factors for them.
        model._weight_conversions = []
        return {**model.state_dict(), **markers(structure)}, {}

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        saved = self._description(model, checkpoint_files)
        result: Any = restructured(model, saved)
        settle(model, result)
        _check_ties(model, result)
        ignored = result._keys_to_ignore_on_load_unexpected or ()
        absent = [
            rf"(^|\.){re.escape(name)}$" for name in marked(self.quantization_config.structure)
        ]
        result._keys_to_ignore_on_load_unexpected = {*ignored, *absent}
        _check_present(result, saved)
        vars(model).update(vars(result))
        return model

    def _description(self, model: Any, files: list[str] | None) -> Description:
        """Read what there is to know, in the names of the model."""
        config = self.quantization_config
        path = Path(files[0]).parent if files else Path(model.config.name_or_path)
        version = config.version
        if type(version) is not int or version > VERSION:
            raise CheckpointFileError(
                path,
                f"its structure is of version {str(version)[:40]!r}, this skcompress knows up to "
                f"{VERSION}: pip install --upgrade skcompress",
            )
        unchecked = Description(path, {}, {})
        with unchecked.blamed("quantization_config"):
            structure = relocated(checked_structure(config.structure), model)
        shapes = {}
        for file in files or ():
            with safe_open(file, "pt") as opened:
                for name in list(opened.keys()):
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
        return Description(path, structure, shapes)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # Flags of models that may neither be cast nor trained.
        vars(model).pop("is_quantized", None)
        vars(model).pop("quantization_method", None)
        structure = relocated(self.quantization_config.structure, model)
        for name in structure["frozen"]:
            tensor = model.get_parameter(name)
            tensor.requires_grad_(False)
        for name, tensor, stored in list(named_tensors(model)):
            if not stored:
                to_precision(model, name, tensor, structure["unsaved"].get(name))
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        dense = vars(densify(model))
        vars(model).clear()
        vars(model).update(dense)
        return model if dtype is None else model.to(dtype)


def _check_ties(model: Any, result: Any) -> None:
    """Refuse a model in which a layer is tied to one that has been replaced without it."""
    tied = result.all_tied_weights_keys
    kept = dict(result.named_parameters(remove_duplicate=False))
    for target, source in model.all_tied_weights_keys.items():
        layer = target.rpartition(".")[0]
        if target not in tied and (
            target in kept or not any(n.startswith(f"{layer}.") for n in tied)
        ):
            raise ArchitectureError(target, "absent", f"tied to {source!r}, which is compressed")


def _check_present(model: Any, saved: Description) -> None:
    """Refuse files that lack what a stand-in consists of: random numbers would take its place."""
    if not saved.shapes:
        return
    transforms = get_model_conversion_mapping(model)
    renamings = [step for step in transforms if isinstance(step, WeightRenaming)]
    tensors = model.state_dict(keep_vars=True)
    present = set(saved.shapes)
    for name in saved.shapes:
        present.add(rename_source_key(name, renamings, [], model.base_model_prefix, tensors)[0])
    found = {id(tensors[name]) for name in present if name in tensors}
    for name in saved.structure["stand_ins"]:
        for own, tensor in model.get_submodule(name).state_dict(keep_vars=True).items():
            if id(tensor) not in found:
                raise CheckpointFileError(saved.path, f"no file has the tensor '{name}.{own}'")


def register() -> None:
    """Make transformers know the method; once."""
    from transformers.quantizers.auto import (
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )

    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(CompressedConfig)
        register_quantizer(METHOD)(CompressedQuantizer)
