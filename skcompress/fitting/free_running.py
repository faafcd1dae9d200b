"""Layers that are given again what they gave: run freely, fitted, and run again.

In an LSTM the error of a weight comes back through the states, over hundreds of steps. A weight
that is fitted to the original's states never meets them. Here the goals are the preactivations of
the original, z = W_ih x + W_hh h + b at every step, and the inputs are those of the compressed
layer, run on its own states x' and h'. A round fits the weights that give z together, one given
the others, makes up for means in the biases, and lets the layer run again, into other states; the
moments of all runs so far are mixed, or rounds would chase each other. The best round stays, by
the error of the states.

References: Ross, Gordon & Bagnell 2011, arXiv 1011.0686 (imitation on states of one's own, with
those of all rounds together); Izenman 1975 (reduced-rank regression).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from torch import Tensor, nn

from ..layers.inputs import arguments
from ..layers.reparametrized import copied
from ..lockstep.anchored import Anchored
from ..lockstep.paused import Call
from ..lockstep.preactivations import anchored_together, columns, joint_weight, state_error
from ..network.batches import Batch
from ..network.weights import Site
from ..protocols import Factors, Metric, Preactivation, Recurrence, Unrolled
from ..protocols.product import multiply_out
from ..statistics.passes import generator
from .calibration import Calibration, noise
from .candidates import working_weight
from .fitted import Replacement, write

Make = Callable[[Site], Replacement | None]
Fit = Callable[[Site, Tensor, list[Metric]], Replacement]

# Most of what rounds gain is gained in the first ones.
ROUNDS = 3
# What the newest run counts among the moments of all.
NEWEST = 0.5
# Of the metrics of factors; less than where each sample is seen once.
RIDGE = 1e-3
# Steps that are used for each input of the weights that give something together.
STEPS = 32


@dataclass
class RecurrentFit:
    """What has become of the weights of a layer.

    replacements : by slot; offsets : to be added to biases, by the name of the parameter
    """

    replacements: dict[str, Replacement] = field(default_factory=dict)
    offsets: dict[str, Tensor] = field(default_factory=dict)


class FreeRunning:
    """Fits the recurrences of one layer, one after another.

    module : the layer in the original; name : of it
    sites : of those of its weights that take part, by slot
    make, fit : as for `reconstruct`
    calls : what the layer is given in both networks, at least one batch; see `Lockstep.calls`
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        sites: Mapping[str, Site],
        make: Make,
        fit: Fit,
        calls: Iterable[tuple[Batch, Call, Call]],
        calibration: Calibration,
        device: Any,
    ):
        self._module, self._name, self._sites = module, name, sites
        self._make, self._fit = make, fit
        self._max_positions, self._seed = calibration.max_positions, calibration.seed
        self._weights = {slot: working_weight(site, device) for slot, site in sites.items()}
        self._batches: list[Batch] = []
        self._before: list[Any] = []
        self._after: list[Any] = []
        for batch, old, new in calls:
            self._batches.append(batch)
            self._before.append(arguments(module, *old))
            self._after.append(arguments(module, *new))
        self._trial = copied(module)

    def run(self, recurrences: Iterable[Recurrence]) -> RecurrentFit:
        """Fit all of them."""
        done = RecurrentFit()
        for recurrence in recurrences:
            goals = [recurrence.run(self._module, given) for given in self._before]
            found, runs = self._fitted(recurrence, goals)
            done.replacements |= found.replacements
            done.offsets |= found.offsets
            self._before = [run.following for run in goals]
            self._after = [run.following for run in runs]
        return done

    def _fitted(
        self, recurrence: Recurrence, goals: Sequence[Unrolled]
    ) -> tuple[RecurrentFit, list[Unrolled]]:
        """Fit the weights of one recurrence, and run it, in turns; give how it runs then too."""
        own = [slot for slot in recurrence.slots if slot in self._sites]
        runs = self._tried(recurrence, RecurrentFit())
        if not own:
            return RecurrentFit(), runs
        met = [self._moments(z, goals, runs) for z in recurrence.preactivations]
        # The weights by themselves, which no round is to be worse than.
        alone = {slot: self._make(self._sites[slot]) for slot in own}
        best = RecurrentFit({slot: made for slot, made in alone.items() if made is not None})
        self._set(recurrence, best)
        for z in recurrence.preactivations:
            known = self._moments(z, goals, goals)
            best.offsets |= missing_means(z, joint_weight(z, self._trial), known)
        best_runs = runs = self._tried(recurrence, best)
        error = state_error(goals, runs, self._batches)
        least = error if isfinite(error) else inf
        for _ in range(ROUNDS):
            if isfinite(error):  # states that have run away say nothing
                now = (self._moments(z, goals, runs) for z in recurrence.preactivations)
                met = [old.mixed_with(new, NEWEST) for old, new in zip(met, now, strict=True)]
            found = RecurrentFit()
            for z, moments in zip(recurrence.preactivations, met, strict=True):
                self._fit_together(z, moments, found)
            runs = self._tried(recurrence, found)
            error = state_error(goals, runs, self._batches)
            if error < least:
                least, best, best_runs = error, found, runs
        return best, best_runs

    def _tried(self, recurrence: Recurrence, found: RecurrentFit) -> list[Unrolled]:
        """Run with what was found, and what the original has besides."""
        self._set(recurrence, found)
        return [recurrence.run(self._trial, given) for given in self._after]

    def _set(self, recurrence: Recurrence, found: RecurrentFit) -> None:
        """Write what was found into the trial, and the original's values where there is none."""
        values, trial = {}, self._trial
        for z in recurrence.preactivations:
            for slot in z.rows.keys() & self._sites.keys():
                weight, made = self._weights[slot], found.replacements.get(slot)
                values[slot] = weight if made is None else _matrix(made.value(weight))[None]
            for bias in z.biases.values():
                value = getattr(self._module, bias).detach()
                offset = found.offsets.get(bias)
                if offset is not None:
                    value = value + offset.to(value)
                getattr(trial, bias).detach().copy_(value)
        write(trial, values)

    def _moments(
        self, z: Preactivation, goals: Sequence[Unrolled], runs: Sequence[Unrolled]
    ) -> Anchored:
        """Moments of the original's z with the inputs of a run."""
        n_inputs = joint_weight(z, self._module).shape[1]
        most = -(-STEPS * n_inputs // len(self._batches))
        if self._max_positions not in (None, "auto"):
            most = min(most, int(self._max_positions))  # type: ignore[arg-type]
        draws = generator(self._seed, f"{self._name}.{next(iter(z.rows))}".lstrip("."))
        return anchored_together(z, self._module, goals, runs, self._batches, most, draws)

    def _fit_together(self, z: Preactivation, goal: Anchored, found: RecurrentFit) -> None:
        """Fit the weights that give z, each to what the others, as they are tried now, leave."""
        if not z.biases:
            goal = goal.with_means()
        squares, cross = goal.squares[0], goal.cross[0]
        joint = joint_weight(z, self._trial).to(cross)
        places = columns(z, self._module)
        for slot in filter(self._sites.__contains__, z.rows):
            rows, inputs = z.rows[slot].to(joint.device), places[slot].to(joint.device)
            joint[rows[:, None], inputs] = 0
            others = squares.times(joint)
            energy = goal.energy[0] - ((2 * cross - others) * joint).sum(1)
            weight = self._weights[slot]
            moment = squares.of(inputs)
            metric = Metric(
                moment.to(weight.device),
                (cross - others)[rows[:, None], inputs].to(weight.device),
                float(energy[rows].sum()),
            ).with_ridge(weight[0], RIDGE, noise(moment, goal.inputs[0, inputs]))
            made = self._fit(self._sites[slot], weight, [metric])
            found.replacements[slot] = made
            joint[rows[:, None], inputs] = _matrix(made.value(weight)).to(joint)
        found.offsets |= missing_means(z, joint, goal)


def missing_means(z: Preactivation, joint: Tensor, goal: Anchored) -> dict[str, Tensor]:
    """What is to be added to biases, by their names, so that z has the mean of its goal."""
    missing = goal.outputs[0] - joint.to(goal.outputs) @ goal.inputs[0]
    offsets = {}
    for slot, bias in z.biases.items():
        rows = z.rows[slot].to(missing.device)
        offsets[bias] = missing[rows]
        # Of several biases that are added to the same number one makes up for it.
        missing = missing.index_fill(0, rows, 0.0)
    return offsets


def _matrix(value: Factors | Tensor) -> Tensor:
    """Weight (out, in) of its one group."""
    return multiply_out(value) if isinstance(value, Factors) else value[0]
