"""What compressing a large checkpoint costs: seconds per GB and memory, by its size.

    python examples/benchmarks/checkpoint.py --sizes 1 2 4 6

Checkpoints have the shapes of a Llama of 3 billion parameters (3072 wide, 8192 inside, 128256
tokens, tied, bfloat16) with as many of its 28 layers as make the size, and random numbers. Each is
made in a temporary folder, compressed in a process of its own, and removed. `--loop` measures
beside it what people write by hand: `torch.load`, then `torch.linalg.svd` of every matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 0.3
WIDTH, INNER, KEYS, TOKENS, LAYERS = 3072, 8192, 1024, 128_256, 28
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": TOKENS, "tie_word_embeddings": True,
}  # fmt: skip
LARGEST = 2 * TOKENS * WIDTH
MIB = 2**20


def layers_in(gigabytes: float) -> int:
    """How many layers make a checkpoint of about this size."""
    layer = sum(2 * out * inputs for out, inputs in SHAPES.values())
    return max(1, min(LAYERS, round((gigabytes * 1e9 - LARGEST) / layer)))


def parts(n_layers: int) -> Iterator[dict[str, Tensor]]:
    """Tensors of a checkpoint with random numbers, shard by shard."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        values = torch.empty(shape, dtype=torch.bfloat16)
        for rows in values.split(4096):
            rows.copy_(0.02 * torch.randn(rows.shape, generator=generator))
        return values

    one = torch.ones(WIDTH, dtype=torch.bfloat16)
    yield {"model.embed_tokens.weight": drawn(TOKENS, WIDTH), "model.norm.weight": one}
    for n in range(n_layers):
        layer = f"model.layers.{n}"
        shard = {f"{layer}.{name}.weight": drawn(*shape) for name, shape in SHAPES.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        yield shard | {f"{layer}.{name}.weight": one.clone() for name in norms}


def make(folder: Path, n_layers: int) -> int:
    """Write a checkpoint of shards with their index; gives the bytes of its values."""
    weight_map, size = {}, 0
    for number, shard in enumerate(parts(n_layers)):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
        size += sum(t.numel() * t.element_size() for t in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {**CONFIG, "num_hidden_layers": n_layers}
    (folder / "config.json").write_text(json.dumps(config))
    return size


def compress(folder: Path) -> None:
    """Compress a checkpoint as skcompress does."""
    from skcompress import SVDCompressor, compress_checkpoint

    compressor = SVDCompressor(RANK)
    report = compress_checkpoint(folder, folder.with_name("small"), compressor, verbose=True)
    print(*(str(step) for step in report.steps), sep="\n", file=sys.stderr)


def loop(folder: Path) -> None:
    """Compress a checkpoint as people do by hand: all of it in memory."""
    state = torch.load(folder / "all.pt")
    for name, tensor in list(state.items()):
        if tensor.dim() == 2:
            u, s, v = torch.linalg.svd(tensor.float(), full_matrices=False)
            rank = int(RANK * tensor.numel() / sum(tensor.shape))
            state[f"{name}.0"] = v[:rank].to(tensor.dtype)
            state[f"{name}.1"] = (u[:, :rank] * s[:rank]).to(tensor.dtype)
            del state[name]
    torch.save(state, folder.with_name("small.pt"))


def measured(way: str, folder: Path) -> tuple[float, int]:
    """Seconds, and the most bytes of memory, of one way in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, int(done.stdout)


def peak() -> int:
    """Most bytes that this process has held at a time; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def run(sizes: list[float], with_loop: bool, scratch: str | None) -> None:
    """Make, compress and remove a checkpoint of each size; print a line for each way."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, rank {RANK}")
    print(f"largest tensor {LARGEST / MIB:,.0f} MiB")
    print("  GB  way       s per GB  peak MiB  of 4 x the largest tensor + 500 MB")
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as root:
            folder = Path(root, "large")
            folder.mkdir()
            n_layers = layers_in(size)
            n_bytes = make(folder, n_layers)
            if with_loop:
                state: dict[str, Tensor] = {}
                for shard in parts(n_layers):
                    state |= shard
                torch.save(state, folder / "all.pt")
                del state
            for way in ("compress", "loop") if with_loop else ("compress",):
                seconds, most = measured(way, folder)
                share = most / (4 * LARGEST + 500e6)
                print(
                    f"{n_bytes / 1e9:4.2f}  {way:8}  {seconds / (n_bytes / 1e9):8.1f}  "
                    f"{most / MIB:8,.0f}  {share:6.0%}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 4, 6], help="in GB")
    parser.add_argument("--loop", action="store_true", help="measure a torch.load and svd loop too")
    parser.add_argument("--scratch", help="folder with room for the largest size, twice")
    parser.add_argument("--way", choices=("compress", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        {"compress": compress, "loop": loop}[given.way](given.folder)
        print(peak())
        return
    run(given.sizes, given.loop, given.scratch or os.environ.get("TMPDIR"))


if __name__ == "__main__":
    main()
