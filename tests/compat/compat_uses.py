"""What is done with networks in PyTorch; each raises where it does not work or is not right."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from compat_cases import Case
from models import distance
from torch import Tensor, nn

from skcompress.layers import densify


def tensors(result: Any) -> Iterator[Tensor]:
    """Yield the tensors of a result, however they are nested."""
    if isinstance(result, Tensor):
        yield result
    elif result is not None:
        for part in result:
            yield from tensors(part)


def loss(result: Any) -> Tensor:
    """Give one number that every output has a part in."""
    return torch.stack([t.float().square().mean() for t in tensors(result)]).sum()


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in module.parameters()]


def deepcopy(case: Case) -> None:
    copied = copy.deepcopy(case.module)
    ours = {id(p) for p in case.module.parameters()}
    assert ours.isdisjoint(map(id, copied.parameters()))
    assert distance(copied(*case.arguments), case.result()) == 0


def _dynamic(case: Case, axis: int) -> tuple[dict[int, Any], ...]:
    size = torch.export.Dim("size", min=2, max=64)
    return tuple({axis: size} for _ in case.arguments)


def export(case: Case, axis: int | None = None) -> None:
    axis = case.axis if axis is None else axis
    shapes = _dynamic(case, axis)
    program = torch.export.export(case.module, case.arguments, dynamic_shapes=shapes)
    for arguments in (case.arguments, case.twice(axis)):
        assert distance(program.module()(*arguments), case.result(*arguments)) < 1e-5


def export_of_any_length(case: Case) -> None:
    export(case, axis=0)


def onnx(case: Case) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            case.module,
            case.arguments,
            dynamo=True,
            dynamic_shapes=_dynamic(case, case.axis),
            verbose=False,
        )
        assert program is not None
        for arguments in (case.arguments, case.twice()):
            expected = list(tensors(case.result(*arguments)))
            assert distance(list(program(*arguments)), expected) < 1e-4


def compiled(case: Case) -> None:
    torch.compiler.reset()
    fast = torch.compile(copy.deepcopy(case.module), backend="aot_eager", fullgraph=True)
    assert distance(fast(*case.arguments), case.result()) < 1e-5
    loss(fast(*case.arguments)).backward()
    loss(case.result()).backward()
    assert distance(gradients(fast), gradients(case.module)) < 1e-4


def inductor(case: Case) -> None:
    try:
        torch.compile(torch.sin)(torch.ones(3))
    except Exception:
        pytest.skip("torch has no compiler for this machine")
    torch.compiler.reset()
    with torch.no_grad():
        fast = torch.compile(case.module, fullgraph=True)
        assert distance(fast(*case.arguments), case.result()) < 1e-5


def trace(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(case.module, case.arguments)
        for arguments in (case.arguments, case.twice()):
            assert distance(traced(*arguments), case.result(*arguments)) < 1e-5


def script(case: Case) -> None:
    single = len(case.arguments) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # torch's own recurrent layers are compiled only as a part of something.
        scripted = torch.jit.script(nn.Sequential(case.module) if single else case.module)
    assert distance(scripted(*case.arguments), case.result()) == 0


def int8(case: Case) -> None:
    """Of torchao, weights only."""
    quantization = pytest.importorskip("torchao.quantization")
    expected = case.result()
    weight = getattr(case.module, "weight", None)
    dense = None if weight is None else weight.detach().clone()
    quantization.quantize_(case.module, quantization.Int8WeightOnlyConfig())
    linear = [m for m in case.module.modules() if isinstance(m, nn.Linear)]
    assert linear
    assert all(type(m.weight) is not nn.Parameter for m in linear)
    assert distance(case.result(), expected) < 0.05
    if dense is not None:
        assert distance(case.module.weight.dequantize(), dense) < 0.05


def functional_call(case: Case) -> None:
    other = copy.deepcopy(case.module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    state = dict(other.named_parameters())
    found = torch.func.functional_call(case.module, state, case.arguments)
    assert distance(found, other(*case.arguments)) == 0
    grads = torch.func.grad(
        lambda state: loss(torch.func.functional_call(case.module, state, case.arguments))
    )(state)
    loss(other(*case.arguments)).backward()
    assert distance(list(grads.values()), gradients(other)) < 1e-5


def vmap(case: Case) -> None:
    batches = [case.arguments, tuple(x.flip(case.axis) for x in case.arguments)]
    stacked = (torch.stack(pair) for pair in zip(*batches, strict=True))
    found = torch.func.vmap(case.module)(*stacked)
    for number, batch in enumerate(batches):
        expected = list(tensors(case.result(*batch)))
        assert distance([t[number] for t in tensors(found)], expected) < 1e-5


def checkpointing(case: Case) -> None:
    other = copy.deepcopy(case.module)
    found = torch.utils.checkpoint.checkpoint(other, *case.arguments, use_reentrant=False)
    loss(found).backward()
    loss(case.result()).backward()
    assert distance(gradients(other), gradients(case.module)) == 0


def ddp(case: Case) -> None:
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(case.module))
    found = parallel(*case.arguments)
    assert distance(found, case.result()) == 0
    loss(found).backward()
    loss(case.result()).backward()
    assert distance(gradients(parallel), gradients(case.module)) < 1e-6


def fsdp2(case: Case) -> None:
    """Each layer with parameters of its own, and the whole."""
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    sharded = copy.deepcopy(case.module)
    for module in list(sharded.modules())[:0:-1]:
        if list(module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        found = sharded(*case.arguments)
        assert distance(found, case.result()) < 1e-6
        loss(found).backward()
    assert all(p.grad is not None for p in sharded.parameters())


def cpu_offload(case: Case) -> None:
    accelerate = pytest.importorskip("accelerate")
    with torch.no_grad():
        offloaded = accelerate.cpu_offload(copy.deepcopy(case.module), torch.device("cpu"))
        assert all(p.is_meta for p in offloaded.parameters())
        assert distance(offloaded(*case.arguments), case.result()) == 0


def channels_last(case: Case) -> None:
    (x,) = case.arguments
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    other = copy.deepcopy(case.module).to(memory_format=layout)
    found = other(x.to(memory_format=layout))
    assert found.is_contiguous(memory_format=layout)
    assert distance(found, case.result()) < 1e-5


def autocast(case: Case) -> None:
    dense = densify(case.module)
    with torch.autocast("cpu", torch.bfloat16):
        found = list(tensors(case.result()))
        types = [t.dtype for t in tensors(dense(*case.arguments))]
    assert [t.dtype for t in found] == types
    expected = list(tensors(case.result()))
    assert distance([t.float() for t in found], expected) < 0.03


def _lowered(case: Case, dtype: torch.dtype, accuracy: float) -> None:
    other = copy.deepcopy(case.module).to(dtype)
    arguments = [x.to(dtype) if x.is_floating_point() else x for x in case.arguments]
    found = list(tensors(other(*arguments)))
    assert {t.dtype for t in found} == {dtype}
    expected = list(tensors(case.result()))
    assert distance([t.float() for t in found], expected) < accuracy
    loss(other(*arguments)).backward()
    assert all(p.grad is not None for p in other.parameters())


def half(case: Case) -> None:
    _lowered(case, torch.float16, 0.005)


def bfloat16(case: Case) -> None:
    _lowered(case, torch.bfloat16, 0.04)


def training(case: Case) -> None:
    module = copy.deepcopy(case.module).train()
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    before = loss(module(*case.arguments))
    before.backward()
    assert all(p.grad is not None for p in module.parameters())
    optimizer.step()
    assert loss(module(*case.arguments)) < before


USES = {
    use.__name__: use
    for use in (
        deepcopy, export, export_of_any_length, onnx, compiled, inductor, trace, script, int8,
        functional_call, vmap, checkpointing, ddp, fsdp2, cpu_offload, channels_last, autocast,
        half, bfloat16, training,
    )
}  # fmt: skip
