"""Pictures of weights and of searches, in the manner of scikit-learn's Display objects.

`from_model`, `from_models` and `from_search` compute and draw; the values stay on the display,
whose `plot` draws them again, elsewhere or in another way. matplotlib is imported only then.
"""

from .matrix import WeightDisplay
from .pareto import ParetoDisplay
from .spectrum import SpectrumDisplay

__all__ = ["ParetoDisplay", "SpectrumDisplay", "WeightDisplay"]
