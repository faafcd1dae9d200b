"""Train a small decoder on tiny Shakespeare, or a convolutional LSTM on SisFall, to compress later.

    python examples/benchmarks/sequences.py transformer --data DIR
    python examples/benchmarks/sequences.py conv_lstm --data DIR

AdamW on a one-cycle schedule, a fixed number of steps, under ten minutes on one CPU core. Every
hundred steps the state is saved: the same command again goes on where it was interrupted. The
trained weights and results.json lie in `--output`/NAME; posttraining.py takes that folder as
`--network`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from shakespeare import Shakespeare
from sisfall import SisFall
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import trange

from skcompress import count_parameters


class Recipe(NamedTuple):
    """What is trained on what, and how."""

    task: type[Shakespeare] | type[SisFall]
    steps: int
    batch_size: int
    lr: float  # peak of the schedule
    precision: str


RECIPES = {
    "transformer": Recipe(Shakespeare, 1200, 32, 3e-3, "bfloat16"),
    "conv_lstm": Recipe(SisFall, 2000, 128, 3e-3, "float32"),
}

SAVE_EVERY = 100  # steps


class Training:
    """One training: network, optimizer, and a folder that it can be resumed from."""

    def __init__(self, task: Shakespeare | SisFall, recipe: Recipe, folder: Path, device: str):
        self.task, self.recipe, self.folder, self.device = task, recipe, folder, device
        self.network = task.build().to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), recipe.lr, (0.9, 0.95), weight_decay=0.1
        )
        self.schedule = OneCycleLR(
            self.optimizer, recipe.lr, recipe.steps, pct_start=0.1, cycle_momentum=False
        )
        self.losses: list[float] = []
        self.seconds = 0.0

    def step(self, generator: torch.Generator) -> None:
        """Train on one batch and add its loss to `losses`."""
        started = perf_counter()
        inputs, targets = (
            t.to(self.device) for t in self.task.batch(self.recipe.batch_size, generator)
        )
        with torch.autocast(
            self.device, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"
        ):
            scores = self.network(inputs)
        loss = cross_entropy(scores.flatten(0, -2).float(), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(float(loss.detach()))
        self.seconds += perf_counter() - started

    def run(self, seed: int) -> None:
        """Train to the end, from the last state that was saved if there is one."""
        generator = torch.Generator().manual_seed(seed)
        settings = f"{self.recipe}, {seed=}"
        self._resume(generator, settings)
        self.network.train()
        done = len(self.losses)
        steps = trange(
            done, self.recipe.steps, initial=done, total=self.recipe.steps, mininterval=10
        )
        for number in steps:
            self.step(generator)
            steps.set_postfix_str(f"loss {self.losses[-1]:.3f}", refresh=False)
            if (number + 1) % SAVE_EVERY == 0:
                self._save(generator, settings)

    def _save(self, generator: torch.Generator, settings: str) -> None:
        """Write all that `_resume` needs; a crash while writing leaves the older file."""
        state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        # Dropout draws from the global state.
        state |= {"losses": self.losses, "seconds": self.seconds, "settings": settings,
                  "generators": [generator.get_state(), torch.get_rng_state()]}  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def _resume(self, generator: torch.Generator, settings: str) -> None:
        path = self.folder / "state.pt"
        state = torch.load(path, weights_only=True) if path.exists() else {}
        if state.get("settings") == settings:
            for name in _STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            self.losses, self.seconds = state["losses"], state["seconds"]
            own, dropout = state["generators"]
            generator.set_state(own)
            torch.set_rng_state(dropout)


_STATEFUL = ("network", "optimizer", "schedule")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", choices=RECIPES)
    add("--data", type=Path, required=True, help="folder with the text, or with the recordings")
    add("--steps", type=int, help="of training; the recipe's otherwise")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch, on a CPU")
    add("--output", type=Path, default=Path("runs/sequences"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.name]
    if options.steps is not None:
        recipe = recipe._replace(steps=options.steps)
    folder = options.output / options.name
    task = recipe.task(options.data)
    with torch.random.fork_rng():  # initial weights and dropout are drawn from the global state
        torch.manual_seed(options.seed)
        training = Training(task, recipe, folder, options.device)
        training.run(options.seed)
    network = training.network
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "network.safetensors")
    results = {
        "network": options.name,
        "recipe": {**recipe._asdict(), "task": recipe.task.__name__},
        "seed": options.seed,
        "parameters": count_parameters(network),
        "seconds": training.seconds,
        "training loss": mean(training.losses[-max(1, recipe.steps // 10) :]),
        f"test {task.unit}": task.quality(network),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
