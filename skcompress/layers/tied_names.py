"""Names of tied parameters, which models of transformers keep beside the parameters.

A `PreTrainedModel` has a list of them by which it ties weights again, and leaves out of a file what
another name has. Where tied layers have been replaced, their factors are what is tied.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def rename_ties(model: nn.Module, result: nn.Module) -> None:
    """Bring the lists of `result`, a copy of `model` with other layers, up to date in place."""
    renamed = False
    for name, module in model.named_modules():
        ties = _ties(module)
        if ties:
            renamed |= _rename(ties, result.get_submodule(name))
    if not renamed:
        return
    for module in result.modules():
        if _ties(module) is not None:
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)


def _ties(module: Any) -> dict[str, str] | None:
    """Give what is tied to what by a module's own list, not those inside it; None for no list."""
    if not hasattr(module, "all_tied_weights_keys"):
        return None
    ties: dict[str, str] = module.get_expanded_tied_weights_keys(all_submodels=False)
    return ties


def _rename(ties: dict[str, str], result: Any) -> bool:
    parameters = dict(result.named_parameters(remove_duplicate=False))
    if all(name in parameters for pair in ties.items() for name in pair):
        return False
    # What the class says is right again once the layers are dense.
    vars(result).pop("_tied_weights_keys", None)
    own = result._tied_weights_keys or {}
    if all(name in parameters for pair in own.items() for name in pair):
        return True
    found = {}
    for target, source in ties.items():
        if target in parameters and source in parameters:
            found[target] = source
            continue
        # A source that is still there is one parameter, whatever else its module holds.
        names = [source] if source in parameters else [n for n in parameters if _inside(n, source)]
        sources = {id(parameters[name]): name for name in names}
        for name, parameter in parameters.items():
            if _inside(name, target) and id(parameter) in sources:
                found[name] = sources[id(parameter)]
    result._tied_weights_keys = found
    return True


def _inside(name: str, tied: str) -> bool:
    """Whether a parameter belongs to the layer that another name is of."""
    layer = tied.rpartition(".")[0]
    return name.startswith(f"{layer}.")
