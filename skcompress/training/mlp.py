"""The network that is trained where none is given."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers, for inputs of shape (n, ...) and of any real dtype.

    n_inputs : numbers per input, n_outputs : numbers per output
    hidden : width of both hidden layers

    >>> MLP(8, 3)(torch.ones(5, 2, 4, dtype=torch.int64)).shape
    torch.Size([5, 3])
    """

    def __init__(self, n_inputs: int, n_outputs: int, hidden: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, n_outputs),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs.flatten(1).to(next(self.parameters()).dtype))
