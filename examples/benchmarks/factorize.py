"""Whole-model compression: skcompress against the loop that people write.

    python examples/benchmarks/factorize.py
    python examples/benchmarks/factorize.py --networks resnet18 --schemes output auto

Every rival compresses the same network with random weights to the same share of each
layer's parameters, or (skcompress, "global") of the whole model. They take turns, so that
a slow moment of the machine hits all of them; the median counts.

- "svd loop": copy the model, `torch.linalg.svd` of each weight, cut, two new layers.
- "tensorly-torch": its factorised layers made from each linear and convolution layer, where
  the package is installed and has a form for the layer (Tucker on convolutions; it has none
  for a plain matrix that is not tensorised).

Extra memory is the peak of the process's resident memory over what it was before, each
in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from networks import NETWORKS
from tabulate import tabulate
from torch import nn

from skcompress import SVDCompressor, count_parameters

KEEP = 0.3


def svd_loop(model: nn.Module) -> nn.Module:
    """What users write: every linear and convolution layer cut at a uniform share."""
    small = copy.deepcopy(model)
    for name, layer in list(small.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        weight = layer.weight.detach().flatten(1)
        out, inputs = weight.shape
        rank = max(1, int(KEEP * out * inputs / (out + inputs)))
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        first, second = values[:rank, None] * right[:rank], left[:, :rank].contiguous()
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            pair = nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, out, bias))
        else:
            geometry = (layer.kernel_size, layer.stride, layer.padding)
            pair = nn.Sequential(
                nn.Conv2d(layer.in_channels, rank, *geometry, bias=False),
                nn.Conv2d(rank, out, 1, bias=bias),
            )
        pair[0].weight.data = first.reshape(pair[0].weight.shape)
        pair[1].weight.data = second.reshape(pair[1].weight.shape)
        if bias:
            pair[1].bias.data = layer.bias.detach().clone()
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, pair)
    return small


def tensorly_torch(model: nn.Module) -> nn.Module:
    """Tucker factorisation of each convolution with a kernel, by TensorLy-Torch."""
    import tltorch

    small = copy.deepcopy(model)
    for name, layer in list(small.named_modules()):
        if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
            made = tltorch.FactorizedConv.from_conv(layer, rank=KEEP, factorization="tucker")
            parent, _, child = name.rpartition(".")
            setattr(small.get_submodule(parent), child, made)
    return small


def ours(scheme: str, allocation: str) -> Callable[[nn.Module], nn.Module]:
    def compress(model: nn.Module) -> nn.Module:
        compressor = SVDCompressor(rank=KEEP, scheme=scheme, allocation=allocation)
        return compressor.fit_transform(model)

    return compress


def rivals(network: str, schemes: list[str]) -> dict[str, Callable[[nn.Module], nn.Module]]:
    table: dict[str, Callable[[nn.Module], nn.Module]] = {"svd loop": svd_loop}
    if importlib.util.find_spec("tltorch") and network != "bert-base":
        table["tensorly-torch (Tucker, kernels only)"] = tensorly_torch
    for scheme in schemes:
        for allocation in ("global", "uniform"):
            table[f"skcompress {scheme}, {allocation}"] = ours(scheme, allocation)
    return table


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def make(network: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[network]().eval()


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def _measure_memory(network: str, rival: str, schemes: list[str], queue) -> None:
    model = make(network)
    compress = rivals(network, schemes)[rival]
    # One call on a small model first: libraries and thread pools are not the result's.
    compress(nn.Sequential(nn.Conv2d(32, 32, 3), nn.Linear(64, 64)))
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before = _status("VmRSS")
    small = compress(model)
    queue.put((_status("VmHWM") - before, count_parameters(small)))


def extra_memory(network: str, rival: str, schemes: list[str]) -> tuple[int, int]:
    """Peak bytes beyond the model while compressing, and the result's parameters."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure_memory, args=(network, rival, schemes, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def warm_start(model: nn.Module) -> tuple[float, float]:
    """Seconds of a first fit, and of a second one with another rank and `warm_start`."""
    firsts, seconds_ = [], []
    for _ in range(3):
        compressor = SVDCompressor(rank=KEEP, warm_start=True)
        firsts.append(seconds(lambda c=compressor: c.fit(model)))
        seconds_.append(seconds(lambda c=compressor: c.set_params(rank=0.5).fit(model)))
    return statistics.median(firsts), statistics.median(seconds_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--schemes", nargs="+", default=["output", "auto"],
                        choices=["output", "input", "spatial", "auto"])  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, keep {KEEP:.0%}\n")
    for network in args.networks:
        model = make(network)
        largest = max(p.numel() * p.element_size() for p in model.parameters())
        table = rivals(network, args.schemes)
        times: dict[str, list[float]] = {name: [] for name in table}
        for compress in table.values():
            compress(nn.Sequential(nn.Conv2d(32, 32, 3), nn.Linear(64, 64)))
        for _ in range(args.repeats):
            for name, compress in table.items():
                times[name].append(seconds(partial(compress, model)))
        base = statistics.median(times["svd loop"])
        rows = []
        for name in table:
            memory, n_out = extra_memory(network, name, args.schemes)
            allowed = 4 * n_out + 3 * largest
            median = statistics.median(times[name])
            kept = n_out / count_parameters(model)
            rows.append([name, f"{median:.3f} s", f"{base / median:.2f}x", f"{kept:.1%}",
                         f"{memory / 2**20:.0f} MiB", f"{memory / allowed:.2f}"])  # fmt: skip
        header = ["", "time", "faster than the loop", "kept", "extra memory", "of allowed*"]
        print(f"{network}: {count_parameters(model):,} parameters")
        print(tabulate(rows, headers=header, disable_numparse=True))
        first, second = warm_start(model)
        print(
            f"warm start: first fit {first:.3f} s, second {second:.3f} s ({second / first:.1%})\n"
        )
    print("* the compressed model plus three times the largest layer, in float32")


if __name__ == "__main__":
    main()
