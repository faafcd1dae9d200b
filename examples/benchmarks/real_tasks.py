"""Inputs of three pretrained networks, and how good they are on them.

Every pack is a .npz file: what calibration inputs are drawn from, and a test part. Other speech,
voices and antibodies can take their place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining_tasks import Subject
from real_networks import SOURCES, open_antibody, open_pitch, open_speaker
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

BATCH = 64


class RealTask(ABC):
    """A task of posttraining_tasks.py with more than one figure.

    unit : the figure that is its quality; better : "higher" or "lower"
    """

    unit: str
    better = "higher"

    @abstractmethod
    def calibration(self, n: int | None, generator: np.random.Generator) -> Any:
        """Draw n inputs, None for all, as `fit` takes them."""

    @abstractmethod
    def figures(self, network: nn.Module) -> dict[str, float]:
        """Measure on the test part; by unit."""

    def quality(self, network: nn.Module) -> float:
        """Give the figure that is named by `unit`."""
        return self.figures(network)[self.unit]


class Pitch(RealTask):
    """Pack: `calibration`, `test`, `speech` (n, 1024) at 16 kHz, normalised; `test_hz` (n,)."""

    unit = "% of frames within 50 cents"

    def __init__(self, pack: Mapping[str, np.ndarray], dense: nn.Module):
        self.frames, self.test, self.speech = (
            torch.from_numpy(pack[name]).float() for name in ("calibration", "test", "speech")
        )
        self.expected = 1200 * torch.log2(torch.from_numpy(pack["test_hz"]) / 10)
        self.heard = self._cents(dense, self.speech)

    def calibration(self, n: int | None, generator: np.random.Generator) -> Tensor:
        """Draw n frames (n, 1024)."""
        return self.frames[drawn(len(self.frames), n, generator)]

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Within 50 cents of what was played; in speech, of what the dense network says."""
        return {
            self.unit: self._close(network, self.test, self.expected),
            "% of speech as dense": self._close(network, self.speech, self.heard),
        }

    def _close(self, network: nn.Module, frames: Tensor, cents: Tensor) -> float:
        off = (self._cents(network, frames) - cents).abs()
        return 100 * float((off <= 50).double().mean())

    def _cents(self, network: nn.Module, frames: Tensor) -> Tensor:
        """Mean of the nine bins around the greatest, weighted by their activations."""
        activations = outputs(network, frames)
        bins = activations.argmax(1, keepdim=True) + torch.arange(-4, 5)
        inside = (bins >= 0) & (bins < activations.shape[1])
        bins = bins.clamp(0, activations.shape[1] - 1)
        weights = activations.gather(1, bins) * inside
        return 1997.3794084376191 + 20 * (weights * bins).sum(1) / weights.sum(1)


class Speaker(RealTask):
    """Pack: `calibration`, `test` (n, time, 40) mels; `speaker` (n,) of the test part."""

    unit = "% of voices recognised"

    def __init__(self, pack: Mapping[str, np.ndarray], dense: nn.Module):
        self.mels, self.test = (
            torch.from_numpy(pack[name]).float() for name in ("calibration", "test")
        )
        self.speaker = torch.from_numpy(pack["speaker"]).long()

    def calibration(self, n: int | None, generator: np.random.Generator) -> Tensor:
        """Draw n utterances (n, time, 40)."""
        return self.mels[drawn(len(self.mels), n, generator)]

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Voices recognised by their other utterances, and the equal error rate over all pairs."""
        vectors = outputs(network, self.test)
        return {self.unit: self._recognised(vectors), "equal error rate, %": self._errors(vectors)}

    def _recognised(self, vectors: Tensor) -> float:
        """Half of each voice's utterances make a centroid; per cent of the others nearest to it."""
        rows = [torch.nonzero(self.speaker == voice).flatten() for voice in self.speaker.unique()]
        halves = [own.split((len(own) + 1) // 2) for own in rows]
        centroids = torch.stack([normalize(vectors[known].mean(0), dim=0) for known, _ in halves])
        right = [
            (vectors[asked] @ centroids.T).argmax(1) == place
            for place, (_, asked) in enumerate(halves)
        ]
        return 100 * float(torch.cat(right).double().mean())

    def _errors(self, vectors: Tensor) -> float:
        """Per cent of pairs taken for one voice that are not, where as many are missed."""
        first, second = torch.triu_indices(len(vectors), len(vectors), 1)
        same = self.speaker[first] == self.speaker[second]
        order = (vectors[first] * vectors[second]).sum(1).argsort(descending=True)
        missed = 1 - same[order].double().cumsum(0) / same.sum()
        false = (~same[order]).double().cumsum(0) / (~same).sum()
        equal = (missed - false).abs().argmin()
        return 50 * float(missed[equal] + false[equal])


class Antibody(RealTask):
    """Pack: tokens and masks (n, length) of sequences, `queries` with [MASK] where `masked`."""

    unit = "% of masked residues"

    def __init__(self, pack: Mapping[str, np.ndarray], dense: nn.Module):
        self.tokens = {
            name: torch.from_numpy(pack[key]).long()
            for name, key in (("input_ids", "calibration_queries"),
                              ("attention_mask", "calibration_mask"))
        }  # fmt: skip
        self.queries, self.mask, self.expected = (
            torch.from_numpy(pack[name]).long() for name in ("queries", "test_mask", "test")
        )
        self.masked = torch.from_numpy(pack["masked"])
        self.dense = self._scores(dense)

    def calibration(self, n: int | None, generator: np.random.Generator) -> list[dict[str, Tensor]]:
        """Draw n sequences with [MASK]s, in batches of keyword inputs."""
        rows = drawn(len(self.tokens["input_ids"]), n, generator)
        return [
            {name: tokens[part] for name, tokens in self.tokens.items()}
            for part in rows.split(BATCH)
        ]

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Residues and perplexity where masked; divergence from the dense network everywhere."""
        scores, inside = self._scores(network), self.mask.bool()
        asked, expected = scores[self.masked], self.expected[self.masked]
        log_p, log_q = (log_softmax(s[inside], 1) for s in (self.dense, scores))
        return {
            self.unit: 100 * float((asked.argmax(1) == expected).double().mean()),
            "perplexity": float(cross_entropy(asked, expected).exp()),
            "divergence, nats": float(kl_div(log_q, log_p, reduction="batchmean", log_target=True)),
        }

    @torch.no_grad()
    def _scores(self, network: nn.Module) -> Tensor:
        batches = zip(self.queries.split(BATCH), self.mask.split(BATCH), strict=True)
        return torch.cat([
            network.eval()(input_ids=ids, attention_mask=mask).logits for ids, mask in batches
        ])  # fmt: skip


@torch.no_grad()
def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """Run `inputs` through `network` in batches."""
    return torch.cat([network.eval()(batch) for batch in inputs.split(BATCH)])


def drawn(available: int, n: int | None, generator: np.random.Generator) -> Tensor:
    """Places of n inputs; of all for None, or where there are no more."""
    return torch.from_numpy(generator.permutation(available)[:n])


Opened = tuple[Callable[[Path], nn.Module], str, str, Callable[[Any, nn.Module], RealTask]]

# By name of the network: how to read it, where below --data it and its inputs lie, its task.
NETWORKS: dict[str, Opened] = {
    "pitch": (open_pitch, "crepe_tiny.safetensors", "crepe_frames.npz", Pitch),
    "speaker": (open_speaker, "speaker_lstm.safetensors", "speaker_mels.npz", Speaker),
    "antibody": (open_antibody, "AntiBERTy_md_smooth", "antibody_tokens.npz", Antibody),
}


def open_real(name: str, data: Path, antibody: Path | None = None) -> Subject:
    """Read a network and its inputs.

    data : folder with the weights and the packs
    antibody : folder of the antibody model, where it is not below `data`
    """
    read, weights, pack, task = NETWORKS[name]
    path = antibody if antibody is not None and name == "antibody" else data / weights
    for needed, what in ((path, SOURCES[name]), (data / pack, f"inputs: {task.__doc__}")):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is not there; it is {what}")
    file = path / "pytorch_model.bin" if path.is_dir() else path
    digest = sha256(file.read_bytes()).hexdigest()[:12]
    network = read(path).eval()
    with np.load(data / pack) as arrays:
        return Subject(name, name, digest, network, task(arrays, network))
