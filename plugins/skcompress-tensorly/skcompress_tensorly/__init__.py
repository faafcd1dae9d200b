"""CP and tensor-train decompositions for skcompress, computed by TensorLy."""

from .cp import CP
from .tensor_train import TensorTrain

__all__ = ["CP", "TensorTrain"]
__version__ = "0.1.0"
