"""Whether batch normalisations should have statistics of the smaller network."""

from __future__ import annotations

from torch import nn

from skcompress.errors import OutputShapeError, OutputTypeError
from skcompress.fitting.fitting import NormStatistics, set_norms
from skcompress.layers.reparametrized import copied
from skcompress.network.batches import Batches, n_samples
from skcompress.statistics.divergence import Reference
from skcompress.statistics.norms import estimated

# From fewer inputs, as people give them for their shape, nothing should be estimated unasked.
ENOUGH = 64


class Closeness:
    """How close smaller networks come to a model on the data.

    memory : bytes for outputs that are compared later
    """

    def __init__(self, model: nn.Module, data: Batches, memory: float):
        self._data = data
        self._reference: Reference | None = None
        try:
            self._reference = Reference(model, data, memory=memory)
        except OutputTypeError:  # lists of found objects, for one
            return

    def best(
        self, small: nn.Module, recalibrate: bool | str
    ) -> tuple[NormStatistics, float | None]:
        """Give the statistics to be set, none for those it has, and the divergence with them."""
        divergence = self._divergence(small)
        if recalibrate == "auto" and (divergence is None or not self._enough()):
            return {}, divergence
        norms = estimated(small, self._data) if recalibrate else {}
        if not norms:
            return {}, divergence
        other = copied(small)
        set_norms(other, norms)
        after = self._divergence(other)
        if recalibrate is True or (
            after is not None and (divergence is None or after < divergence)
        ):
            return norms, after
        return {}, divergence

    def _enough(self) -> bool:
        n = 0
        for batch in self._data:
            n += n_samples(batch)
            if n >= ENOUGH:
                return True
        return False

    def _divergence(self, network: nn.Module) -> float | None:
        if self._reference is None:
            return None
        try:
            return self._reference.divergence(network)
        except OutputShapeError:
            return None
