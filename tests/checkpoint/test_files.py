"""Files that are damaged or forged, and writers that are stopped, fail, or are two."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from saved import check_comes_back, images, small_network
from torch import nn

from skcompress import MagnitudePruner, SVDCompressor, load, save
from skcompress.errors import CheckpointFileError, SaveError, SkcompressError


@pytest.fixture(scope="module")
def small():
    """Stand-ins with pivots, and packed zeros."""
    model = SVDCompressor({"3": 6, "9": 6}, pivot=True).fit_transform(small_network())
    return MagnitudePruner(0.7, layers=["6", "3"]).fit_transform(model)


@pytest.fixture(scope="module")
def content(small, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a"
    save(small, path)
    return path.read_bytes()


def parts(content: bytes) -> tuple[dict, dict, bytes]:
    """The header, the structure in it, and the numbers of a file."""
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    return header, json.loads(header["__metadata__"]["skcompress.structure"]), content[8 + n :]


def forged(header: dict, structure: object, numbers: bytes) -> bytes:
    """A file with right digests, whatever its structure says."""
    text = json.dumps(structure)
    metadata = header["__metadata__"]
    metadata["skcompress.structure"] = text
    metadata["skcompress.digest"] = hashlib.sha256(text.encode()).hexdigest()
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + numbers


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, some missing, or some twice."""
    data = bytearray(content)
    n_header = int.from_bytes(content[:8], "little")
    way = draw.randrange(5)
    if way == 0:
        return bytes(data[: draw.randrange(len(data))])
    end = draw.choice([8, n_header, len(data)])
    for _ in range(draw.choice([1, 1, 3, 20])):
        place = draw.randrange(end)
        data[place] = draw.choice([draw.randrange(256), *b'0"[]{},-9'])
    if way == 1:
        start = draw.randrange(len(data))
        del data[start : start + draw.randrange(40)]
    return bytes(data)


def tampered(structure: object, draw: random.Random) -> object:
    """The same JSON with another value somewhere."""
    odd = [None, -1, 0, 2**31, 2**62, 10**30, 1.5, "x", "", True, [], {}, [[]], ["0"], [1, 2, 3]]
    if isinstance(structure, dict) and structure and draw.random() < 0.95:
        key = draw.choice(list(structure))
        way = draw.random()
        if way < 0.03:
            return {k: v for k, v in structure.items() if k != key}
        if way < 0.06:
            return {(f"{k}x" if k == key else k): v for k, v in structure.items()}
        return {**structure, key: tampered(structure[key], draw)}
    if isinstance(structure, list) and structure and draw.random() < 0.9:
        place = draw.randrange(len(structure))
        return [tampered(v, draw) if i == place else v for i, v in enumerate(structure)]
    return draw.choice(odd)


def loads_or_refuses(path, small) -> bool:
    """Whether it loads, as what it is; any error but one of ours fails."""
    try:
        model = load(path, small_network)
    except SkcompressError:
        return False
    assert all(p.numel() <= 10_000 for p in model.parameters())
    return True


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused(seed, content, small, tmp_path):
    draw = random.Random(seed)
    path = tmp_path / "a"
    expected = small(images(2))
    for _ in range(60):
        data = mutated(content, draw)
        path.write_bytes(data)
        if loads_or_refuses(path, small):
            assert torch.equal(load(path, small_network)(images(2)), expected)


@pytest.mark.parametrize("seed", range(4))
def test_forged_structures_are_refused_or_harmless(seed, content, small, tmp_path):
    draw = random.Random(seed)
    path = tmp_path / "a"
    for _ in range(60):
        header, structure, numbers = parts(content)
        path.write_bytes(forged(header, tampered(structure, draw), numbers))
        loads_or_refuses(path, small)


def test_huge_claims_allocate_nothing(content, small, tmp_path):
    header, structure, numbers = parts(content)
    name = next(iter(structure["packed"]))
    structure["packed"][name]["shape"] = [2**20, 2**19]
    (tmp_path / "a").write_bytes(forged(header, structure, numbers))
    with pytest.raises(SkcompressError, match=name.replace(".", r"\.")):
        load(tmp_path / "a", small_network)
    (tmp_path / "a").write_bytes((2**60).to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointFileError, match="no whole safetensors file"):
        load(tmp_path / "a", small_network)


def test_places_beyond_a_factor_are_refused(content, small, tmp_path):
    from skcompress.checkpoint.files import checksum

    header, structure, numbers = parts(content)
    name = next(n for n in structure["tensors"] if n.endswith(".index"))
    start, stop = header[name]["data_offsets"]
    index = torch.frombuffer(bytearray(numbers[start:stop]), dtype=torch.int64)
    index[0] = 10**9
    structure["tensors"][name][2] = checksum(index)
    changed = numbers[:start] + index.numpy().tobytes() + numbers[stop:]
    (tmp_path / "a").write_bytes(forged(header, structure, changed))
    with pytest.raises(CheckpointFileError, match="order of channels"):
        load(tmp_path / "a", small_network)


def test_damaged_numbers_are_noticed(content, tmp_path):
    data = bytearray(content)
    data[-3] ^= 4
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointFileError, match="are damaged"):
        load(tmp_path / "a", small_network)


def test_a_newer_format_says_to_upgrade(content, tmp_path):
    header, structure, numbers = parts(content)
    header["__metadata__"]["skcompress.version"] = "2"
    (tmp_path / "a").write_bytes(forged(header, structure, numbers))
    with pytest.raises(CheckpointFileError, match=r"version 2, this skcompress knows up to 1: pip"):
        load(tmp_path / "a", small_network)


def test_what_is_no_file_of_ours(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a")
    for path, message in ((tmp_path / "a", "did not write it"), (tmp_path / "b", "no such file"),
                          (tmp_path, "has no model")):  # fmt: skip
        with pytest.raises(CheckpointFileError, match=message):
            load(path, small_network)


# Folders ------------------------------------------------------------------------------------------


def test_a_model_larger_than_a_file_is_a_folder(small, tmp_path):
    folder = tmp_path / "model"
    save(small, folder, shard_bytes=8000)
    names = {path.name for path in folder.iterdir()}
    assert len([n for n in names if n.endswith(".safetensors")]) > 1
    assert torch.equal(load(folder, small_network)(images(2)), small(images(2)))
    save(small, folder, shard_bytes=8000)  # the files of the model before go
    assert len(list(folder.iterdir())) == len(names)
    save(small, folder)
    assert torch.equal(load(folder, small_network)(images(2)), small(images(2)))
    (folder / "stray").write_text("")
    with pytest.raises(SaveError, match="is a file, and a model"):
        save(small, folder / "stray", shard_bytes=10)


def test_a_folder_that_lacks_a_file(small, tmp_path):
    save(small, tmp_path / "model", shard_bytes=8000)
    next((tmp_path / "model").glob("*1-of*")).unlink()
    with pytest.raises(CheckpointFileError, match="there is no such file"):
        load(tmp_path / "model", small_network)


# Writing ------------------------------------------------------------------------------------------

WRITER = """
import resource, signal, sys, torch
from torch import nn
from skcompress import save
from skcompress.errors import SaveError
model = nn.Sequential(nn.Linear(700, 700))
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save(model, sys.argv[1])
    except SaveError as error:
        print(error)
else:
    print("begun", flush=True)
    while True:
        save(model, sys.argv[1])
"""


def writer(path, way: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), way],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_on_a_full_disk_the_old_file_stays(content, small, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(content)
    output, _ = writer(path, "full").communicate()
    assert "cannot be written (OSError" in output
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_killed_writers_and_two_at_a_time_leave_a_whole_file(tmp_path):
    path = tmp_path / "a"

    def make():
        return nn.Sequential(nn.Linear(700, 700))

    save(make(), path)
    draw = random.Random(0)
    both = [writer(path, "loop") for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "begun\n"
    for process in both:
        time.sleep(draw.random() / 5)
        assert isinstance(load(path, make), nn.Module)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert isinstance(load(path, make), nn.Module)


def test_a_place_that_cannot_be_written(small, tmp_path):
    with pytest.raises(SaveError, match=r"cannot be written \(FileNotFoundError"):
        save(small, tmp_path / "missing" / "a")
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(SaveError, match=r"cannot be written \(PermissionError"):
            save(small, tmp_path / "a")


def test_the_same_model_gives_the_same_bytes(small, content, tmp_path):
    check_comes_back(small, small_network, tmp_path, images(2))
    assert (tmp_path / "saved.safetensors").read_bytes() == content
