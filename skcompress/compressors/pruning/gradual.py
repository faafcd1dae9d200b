"""Zeros that grow in number while a model is trained, and stay zero under its optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import HeldWeightError, HookedOptimizerError, PlanMismatchError, ScheduleError
from ...metrics import count_parameters
from ...network.weights import Site
from ...plan import Report
from .fit import PruningFit, zeros

if TYPE_CHECKING:
    from .base import PruningCompressor


class GradualPruning:
    """A schedule, as those of learning rates are: `step` now and then, `finalize` at the end.

    It changes the model that it was given, in place. Step t of n sets the share of zeros to
    s (1 - (1 - t/n)^3), most of them early on (Zhu & Gupta 2017, arXiv 1710.01878), and chooses
    them anew, by the weights as they are then; what is zero has the least scores and stays. In
    between, every `optimizer.step()` is followed by setting them to zero again. Where it is given a
    closure, as that of LBFGS is, the gradients of zeros are zero in each evaluation, so that a line
    search keeps to what the network is afterwards.

    Nothing is put into the model: parameters, `state_dict`, `copy.deepcopy` and
    DistributedDataParallel see plain tensors with zeros. A copy, or a model that was loaded, has
    the zeros but does not keep them; this object does, and has a `state_dict` of its own. With
    DistributedDataParallel every process has a schedule, and criteria that take data get the same
    data in each.
    """

    def __init__(self, pruner: PruningCompressor, model: nn.Module, n_steps: int, optimizer: Any):
        self.n_steps, self.n_done = n_steps, 0
        self._pruner, self._model = pruner, model
        self._sites: dict[str, Site] = {s.name: s for s in pruner._selection(model).sites}
        for site in self._sites.values():
            if site.computed:  # anew from other parameters, at every call
                raise HeldWeightError(site.name)
        self._masks: dict[str, Tensor] = {}
        self._fit: PruningFit | None = None
        self._optimizer, self._hooks = optimizer, []
        if optimizer is not None:
            if not hasattr(optimizer, "register_step_post_hook"):
                raise HookedOptimizerError(type(pruner).__name__, optimizer)
            self._hooks = [
                optimizer.register_step_pre_hook(self._with_held_gradients),
                optimizer.register_step_post_hook(lambda *_: self.hold()),
            ]

    @property
    def sparsity(self) -> float:
        """The share of zeros, among the weights that count, that is held now."""
        share: float = self._pruner.sparsity
        return share * (1 - (1 - self.n_done / self.n_steps) ** 3)

    @torch.no_grad()
    def step(self, data: object = None) -> None:
        """Set more values to zero, the next share of them."""
        if self.n_done == self.n_steps:
            raise ScheduleError(self.n_steps)
        self.n_done += 1
        try:
            fit = self._pruner._prepared_fit(self._model, data, sparsity=self.sparsity)
            masks = fit.masks(fit.scores())
        except BaseException:
            self.n_done -= 1
            raise
        self._fit = fit
        device = {name: site.slot.parameters[0].device for name, site in self._sites.items()}
        self._last = {one.name: one for one in masks}
        self._masks = {one.name: one.kept(device[one.name]) for one in masks}
        self.hold()
        if isinstance(self._optimizer, torch.optim.LBFGS):
            # The curvature that it remembers is that of a network with other zeros.
            self._optimizer.state.clear()

    @torch.no_grad()
    def hold(self) -> None:
        """Set to zero what is to be zero; called after every step of the optimizer."""
        for name, kept in self._masks.items():
            weight = self._sites[name].slot.read().detach()
            weight.mul_(kept)

    def finalize(self) -> Report | None:
        """Let the weights go: from here on nothing keeps them zero. Gives the report."""
        self.hold()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._masks = {}
        if self._fit is None:
            return None
        plan = self._fit.plan(self._last)
        n = count_parameters(self._model)
        return Report(plan, n, n, zeros=zeros(self._model, plan))

    def state_dict(self) -> dict[str, Any]:
        """Give how many steps are done, and what is held: True where values stay."""
        return {"n_done": self.n_done, "masks": dict(self._masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another schedule of the same model was, and hold what it held."""
        for name, kept in state["masks"].items():
            found = self._sites.get(name)
            if found is None or found.slot.shape != kept.shape:
                shape = None if found is None else found.slot.shape
                raise PlanMismatchError(name, f"has shape {shape}", f"{tuple(kept.shape)}")
        self.n_done = state["n_done"]
        self._masks = {
            name: kept.to(self._sites[name].slot.parameters[0].device)
            for name, kept in state["masks"].items()
        }
        self.hold()

    def _with_held_gradients(self, _: Any, args: Any, kwargs: Any) -> Any:
        """Let a closure that a step is given leave no gradient where values are held at zero."""
        given = [*args[1:], *kwargs.values()]  # after the optimizer itself
        closure = next((one for one in given if callable(one)), None)
        if closure is None:
            return None

        def held(*inputs: Any) -> Any:
            loss = closure(*inputs)
            with torch.no_grad():
                for parameter, kept in self._by_parameter():
                    if parameter.grad is not None:
                        parameter.grad.mul_(kept)
            return loss

        def swapped(one: Any) -> Any:
            return held if one is closure else one

        return tuple(map(swapped, args)), {k: swapped(v) for k, v in kwargs.items()}

    def _by_parameter(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each parameter with zeros, and where it has none, of its own shape."""
        weights: dict[nn.Parameter, list[str]] = defaultdict(list)
        for name in self._masks:
            weights[self._sites[name].slot.parameters[0]].append(name)
        for parameter, names in weights.items():
            mask = torch.empty_strided(
                parameter.shape, parameter.stride(), dtype=torch.bool, device=parameter.device
            ).fill_(True)
            for name in names:
                weight = self._sites[name].slot.read().detach()
                start = weight.storage_offset() - parameter.storage_offset()
                mask.as_strided(weight.shape, weight.stride(), start).copy_(self._masks[name])
            yield parameter, mask
