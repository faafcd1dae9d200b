"""Laws that every storage keeps."""

from __future__ import annotations

import torch

from ..decompositions.svd import SVD
from ..protocols import Decomposition, Storage
from ..protocols.product import multiply_out
from .cases import awkward_weights
from .estimators import checked_estimator


def check_storage(
    plugin: Storage | type[Storage], decomposition: Decomposition | None = None
) -> None:
    """Check that what is stored of factors stands for the same weight.

    decomposition : whose factors are stored; that of default is SVD

    - the product of what is stored is that of the factors, to rounding;
    - `stages` says its shapes beforehand, `numbers` how many numbers that is;
    - it is never more numbers, and the same ones every time.
    """
    storage: Storage = checked_estimator(plugin, Storage)
    plain = decomposition or SVD(every_rank=True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for case, weight in awkward_weights(dtype):
            if plain.unsupported(weight.shape) is not None:
                continue
            whole = plain.factorize(weight)
            for option in range(0, len(whole.curve.costs), 3):
                rank = whole.curve.rank_at(option)
                where = f"{type(storage).__name__} on {case}, rank {rank}"
                factors = whole.factors(weight, rank)
                kept = storage.stored(factors)
                assert storage.stages(factors.stages) == kept.stages, f"{where}: stages differ"
                n_kept = sum(t.numel() for t in kept.stored)
                costs = whole.curve.costs[option : option + 1]
                counted = storage.numbers(costs, [factors.stages])
                assert counted.tolist() == [n_kept], f"{where}: numbers are not those stored"
                assert n_kept <= sum(t.numel() for t in factors.stored), f"{where}: more numbers"
                error = float((multiply_out(kept) - multiply_out(factors)).norm())
                assert error <= tolerance * float(weight.norm()), f"{where}: another weight"
                again = storage.stored(factors)
                same = all(map(torch.equal, kept.stored, again.stored))
                assert same, f"{where}: other numbers the second time"
