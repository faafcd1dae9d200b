"""Whether what an earlier fit found out with data still holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What factorisations with data depend on, besides weights and decompositions."""

    data: object
    version: int | None
    settings: tuple[Any, ...]

    @classmethod
    def by(cls, compressor: Any, data: object) -> Seen:
        """Describe one fit. Of a tensor, changes in place are counted; not of other data."""
        version = data._version if isinstance(data, Tensor) else None
        names = ("metric", "fold_norm", "max_positions", "random_state")
        settings = tuple(getattr(compressor, name) for name in names)
        return cls(data, version, (*settings, bool(compressor.sensitivity)))

    def same(self, other: Seen | None) -> bool:
        """Whether another fit saw the same object, as it was, with the same settings."""
        return (
            other is not None
            and self.data is other.data
            and (self.version, self.settings) == (other.version, other.settings)
        )
