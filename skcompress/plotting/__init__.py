"""Pictures of weights, in the manner of scikit-learn's Display objects.

`from_model` and `from_models` compute and draw; the values stay on the display, whose
`plot` draws them again, elsewhere or in another way. matplotlib is imported only then.
"""

from .matrix import WeightDisplay
from .spectrum import SpectrumDisplay

__all__ = ["SpectrumDisplay", "WeightDisplay"]
