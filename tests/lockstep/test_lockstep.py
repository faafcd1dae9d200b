"""Forwards that wait for each other: their order, what they see, and what they leave behind."""

from __future__ import annotations

import contextvars
import gc
import itertools
import threading
import weakref
from collections import Counter

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress import SVDCompressor
from skcompress.layers import kind_of
from skcompress.lockstep.lockstep import Lockstep
from skcompress.lockstep.order import calls_in_order
from skcompress.lockstep.paused import PausedForward
from skcompress.network.batches import batches
from skcompress.network.structure import look
from skcompress.network.weights import select
from skcompress.testing.untouched import check_untouched, snapshot


def lockstep(model, data, **settings):
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    data = batches("Test", data, model, batch_size=8)
    return Lockstep(model, names, data, look(model, names, data), **settings)


def slots(networks, name):
    module = networks.pristine(name)
    return {slot.name: slot for slot in kind_of(module).slots(module)}


def walked(networks, seen=lambda name: None):
    """Names in the order in which they come, with what they were anchored to."""
    found = []
    with torch.no_grad():
        for name in networks:
            seen(name)
            found.append((name, networks.anchored(name, slots(networks, name)).get("")))
    return found


def stack(*sizes):
    pairs = itertools.pairwise(sizes)
    return seeded(lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in pairs))).double().eval()


def assert_anchored(found, x, weight, x_old):
    """Compare with explicit inputs (positions, n) of both networks."""
    y = x_old @ weight.T
    n = len(x)
    expected = (x.T @ x / n, y.T @ x / n, y.square().mean(0), x.mean(0), y.mean(0))
    found = found.with_means()
    given = (found.gram, found.cross, found.energy, found.inputs, found.outputs)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a[0], b.double(), rtol=1e-6, atol=1e-9)


class Branches(nn.Module):
    """Registered in another order than it runs in."""

    def __init__(self):
        super().__init__()
        self.end, self.right = nn.Linear(6, 3), nn.Linear(6, 6)
        self.left, self.start = nn.Linear(6, 6), nn.Linear(4, 6)

    def forward(self, x):
        x = self.start(x)
        return self.end(x + self.left(x).relu() + self.right(x).tanh())


def test_order_is_that_of_execution_and_moments_are_exact():
    model, x = seeded(Branches).double().eval(), random(20, 4)
    networks = lockstep(model, x)
    found = dict(walked(networks))
    assert list(found) == ["start", "left", "right", "end"]
    with torch.no_grad():
        inner = model.start(x)
        last = inner + model.left(inner).relu() + model.right(inner).tanh()
        assert_anchored(found["start"], x, model.start.weight, x)
        assert_anchored(found["right"], inner, model.right.weight, inner)
        assert_anchored(found["end"], last, model.end.weight, last)


def test_energies_are_those_of_the_outputs_as_they_count():
    model, x = stack(5, 7, 4), random(20, 5)
    roots = {"0": [random(7, 7, seed=1)], "1": [random(4, seed=2)]}
    networks = lockstep(model, x)
    with torch.no_grad():
        for name in networks:
            moments = networks.anchored(name, slots(networks, name), {"": roots[name]})[""]
            inputs = x if name == "0" else model[0](x)
            y = inputs @ model[int(name)].weight.T
            (root,) = roots[name]
            seen = y @ root.T if root.dim() == 2 else y * root
            torch.testing.assert_close(moments.energy[0], seen.var(0, unbiased=False))
            whole = moments.with_means()
            torch.testing.assert_close(whole.energy[0], seen.square().mean(0))


def test_what_was_replaced_reaches_calls_under_way():
    model, x = stack(5, 7, 80, 4), random(20, 5)
    networks, found = lockstep(model, x), {}
    halves = {name: nn.Linear(*reversed(model[int(name)].weight.shape)).double() for name in "01"}
    with torch.no_grad():
        for half, whole in zip(halves.values(), model, strict=False):
            half.weight.copy_(whole.weight / 2)
        for name in networks:
            found[name] = networks.anchored(name, slots(networks, name))[""]
            if name in halves:
                networks.replace(name, halves[name])
                assert networks.successor(name) is halves[name]
        old, new = x, x
        for name, layer in zip("012", model, strict=True):
            assert_anchored(found[name], new, layer.weight, old)
            old, new = layer(old), halves.get(name, layer)(new)


def test_as_many_forwards_of_layers_as_there_are_layers():
    counts = Counter()

    class Counted(nn.Linear):
        def forward(self, input):
            counts["calls"] += 1
            return super().forward(input)

    for depth in (4, 16):
        counts.clear()
        model = seeded(lambda n=depth: nn.Sequential(*(Counted(3, 3) for _ in range(n))))
        walked(lockstep(model.double(), random(20, 3)))
        assert counts["calls"] == depth * (1 + 1 + 2 * 3)  # two shapes of batch, three batches


class Looped(nn.Module):
    """As many steps as the input has, with one weight."""

    def __init__(self):
        super().__init__()
        self.step, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        state = torch.zeros_like(x[:, 0])
        for part in x.unbind(1):
            state = torch.tanh(self.step(state) + part)
        return self.out(state)


@pytest.mark.parametrize("lengths", [(3, 3), (1, 4), (4, 1)])
def test_layers_called_several_times_get_all_calls(lengths):
    model = seeded(Looped).double().eval()
    data = [random(5, n, 4, seed=n + i) for i, n in enumerate(lengths)]
    inputs = []
    handle = model.step.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for x in data:
            model(x)
    handle.remove()
    found = dict(walked(lockstep(model, data)))
    x = torch.cat(inputs)
    assert_anchored(found["step"], x, model.step.weight.detach(), x)


class Experts(nn.Module):
    """Of each batch, all inputs go to those experts whose number its first entry has bits for."""

    def __init__(self, n=2):
        super().__init__()
        self.start = nn.Linear(3, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))) for _ in range(n)
        )
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        to = int(x[0, 0])
        x = self.start(x)
        for number, expert in enumerate(self.experts):
            if to >> number & 1:
                x = expert(x)
        return self.last(x)


@pytest.mark.parametrize("paths", [(0, 1), (0, 3, 2, 1), (0, 2, 3), (1, 2, 3), (3, 0), (0, 2, 1)])
def test_batches_on_different_paths(paths):
    model = seeded(Experts).double().eval()
    data = [random(4, 3, seed=n) for n, _ in enumerate(paths)]
    for x, path in zip(data, paths, strict=True):
        x[0, 0] = path
    inputs = {}

    def note(name):
        return lambda _, args: inputs.setdefault(name, []).append(args[0])

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(note(name))
        for x in data:
            model(x)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    found = walked(lockstep(model, data))
    names = [name for name, _ in found]
    assert sorted(names) == sorted(inputs)  # each once
    for name, anchored in found:
        x = torch.cat(inputs[name])
        assert_anchored(anchored, x, model.get_submodule(name).weight.detach(), x)


def test_the_successor_may_take_another_path():
    class Gated(Experts):
        def forward(self, x):
            to = int(self.start(x)[0, 0] > 0)
            for expert in self.experts[to : to + 1]:
                x = expert(x)
            return self.last(x)

    model = seeded(Gated).double().eval()
    networks, found = lockstep(model, random(6, 3)), {}
    flipped = nn.Linear(3, 3).double()
    with torch.no_grad():
        flipped.weight.copy_(-model.start.weight)
        flipped.bias.copy_(-model.start.bias)
        for name in networks:
            found[name] = networks.anchored(name, slots(networks, name))
            if name == "start":
                networks.replace(name, flipped)
    reached = {name for name, moments in found.items() if moments}
    assert {"start", "last"} < reached
    assert len(reached) == 5


def test_masked_positions_do_not_count():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x, attention_mask):
            return self.inner(x)

    model, x = seeded(Masked).double(), random(3, 5, 4)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    ((_, found),) = walked(lockstep(model, [{"x": x, "attention_mask": mask.long()}]))
    assert_anchored(found, x[mask], model.inner.weight.detach(), x[mask])


def test_draws_stand_for_what_is_left_out_and_do_not_depend_on_chance():
    model, x = stack(4, 3), random(4000, 4)
    data = [x[:10], x[10:]]
    first = walked(lockstep(model, data, max_positions=500, seed=3))[0][1]
    again = walked(lockstep(model, data, max_positions=500, seed=3))[0][1]
    assert torch.equal(first.gram, again.gram)
    whole = walked(lockstep(model, data))[0][1]
    assert not torch.equal(first.gram, whole.gram)
    torch.testing.assert_close(first.gram, whole.gram, rtol=0.2, atol=0.2)


def test_batches_count_by_what_they_have_not_by_what_was_drawn_of_them():
    model, x = stack(4, 3), random(4000, 4)
    x[100:] += 5
    found = walked(lockstep(model, [x[:100], x[100:]], max_positions=500))[0][1]
    torch.testing.assert_close(found.inputs[0], x.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(found.gram[0], torch.cov(x.mT), atol=0.3, rtol=0)


class Fragile(nn.Module):
    """Fails between its layers, where an input says so."""

    def __init__(self, error=ValueError):
        super().__init__()
        self.first, self.second, self.error = nn.Linear(3, 3), nn.Linear(3, 3), error

    def forward(self, x):
        try:
            x = self.first(x)
            if x.shape[0] == 7:
                raise self.error("odd")
            return self.second(x)
        finally:
            self.second(x[:1])  # which must not stop once more


def living():
    gc.collect()
    return sum(type(o) is PausedForward and bool(o) for o in gc.get_objects())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_model_is_its_own_and_leaves_nothing(error):
    model = seeded(lambda: Fragile(error))
    before, state = snapshot(model), torch.get_rng_state()
    data = [random(4, 3), random(7, 3), random(4, 3)]
    with pytest.raises(error, match="odd") as caught:
        SVDCompressor(rank=1, reconstruction="sequential").fit(model, data)
    if error is ValueError:
        assert "batch 1" in "".join(getattr(caught.value, "__notes__", caught.value.args))
    check_untouched("fit", model, before)
    assert torch.equal(state, torch.get_rng_state())
    del caught
    assert living() == 0


def test_an_error_of_the_caller_leaves_nothing():
    networks = lockstep(stack(3, 3, 3), random(20, 3))
    with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012
        for name in networks:
            if name == "1":
                raise RuntimeError("mine")
    assert living() == 0


class Modes(nn.Module):
    """Has every mode of the thread changed while its layers run."""

    def __init__(self, mode):
        super().__init__()
        self.first, self.second, self.mode = nn.Linear(8, 8), nn.Linear(8, 8), mode

    def forward(self, x):
        with self.mode():
            before = modes()
            x = self.second(self.first(x))
            assert modes() == before
        return x


def modes():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.float16, cache_enabled=False),
    "enable_grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "not inference": lambda: torch.inference_mode(False),
}


@pytest.mark.parametrize("caller", MODES.values(), ids=MODES)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_are_each_ones_own(mode, caller):
    model, x = seeded(lambda: Modes(mode)), random(20, 8, dtype=torch.float32)
    outside = modes()
    with caller():
        before = modes()
        networks = lockstep(model, x)
        for _ in networks:
            assert modes() == before
        assert modes() == before
        for _ in lockstep(model, x):  # left half-way
            break
        assert modes() == before
    assert modes() == outside


def test_factors_can_be_trained_where_the_forward_is_for_inference_only():
    class Served(nn.Sequential):
        forward = torch.inference_mode()(nn.Sequential.forward)

    model = seeded(lambda: Served(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    small = SVDCompressor(rank=2).fit_transform(model, random(20, 8, dtype=torch.float32))
    assert not any(p.is_inference() for p in small.parameters())
    nn.Sequential(*small).forward(torch.ones(2, 8)).sum().backward()


def test_context_variables_of_the_caller_are_seen():
    variable = contextvars.ContextVar("variable", default="other")

    class Reading(nn.Linear):
        def forward(self, input):
            assert variable.get() == "mine"
            return super().forward(input)

    token = variable.set("mine")
    try:
        walked(lockstep(nn.Sequential(seeded(lambda: Reading(3, 3))), random(20, 3)))
    finally:
        variable.reset(token)


def test_a_model_that_is_one_layer_keeps_its_bias():
    layer, x = seeded(lambda: nn.Linear(8, 8)), random(20, 8, dtype=torch.float32) + 1
    before = snapshot(layer)
    small = SVDCompressor(rank=2).fit_transform(layer, x)
    check_untouched("fit", layer, before)
    torch.testing.assert_close(small(x).mean(0), layer(x).mean(0), rtol=1e-4, atol=1e-4)


def test_walks_that_are_through_hold_nothing():
    held = []

    class Watched(nn.Linear):
        def forward(self, input):
            result = super().forward(input)
            held.append(weakref.ref(result))
            return result

    model = nn.Sequential(*(seeded(lambda: Watched(3, 3)) for _ in range(4)))
    networks = lockstep(model.double(), random(20, 3))
    alive = []
    walked(networks, lambda _: alive.append(sum(ref() is not None for ref in held)))
    assert max(alive) <= 6  # what three pairs of forwards have at one place
    assert not any(ref() is not None for ref in held)
    assert living() == 0


def test_hooks_of_the_user_are_called_as_often_as_layers():
    model, calls = stack(3, 3, 3), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    walked(lockstep(model, random(20, 3)))
    assert len(calls) == 2 + 2 * 3


def test_in_two_threads_at_once():
    model, x = stack(6, 6, 6, 6), random(40, 6)
    expected = SVDCompressor(rank=2).fit_transform(model, x)(x)
    found = {}

    def work(number):
        found[number] = SVDCompressor(rank=2).fit_transform(model, x)(x)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[n], expected) for n in range(2))


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules_run_plainly(whole):
    model, x = stack(6, 6, 6), random(20, 6)
    expected = SVDCompressor(rank=2).fit_transform(model, x)(x)

    def backend(graph, inputs):
        raise AssertionError("compiled")

    if whole:
        compiled = torch.compile(model, backend=backend)
    else:
        compiled = nn.Sequential(model[0], torch.compile(model[1], backend=backend))
    small = SVDCompressor(rank=2).fit_transform(compiled, x)
    plain = small._orig_mod if whole else nn.Sequential(small[0], small[1]._orig_mod)
    torch.testing.assert_close(plain(x), expected)


def test_every_kind_of_layer_waits():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x):
            x = self.block(x)
            x = self.attention(x, x, x, need_weights=False)[0]
            packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3], batch_first=True)
            return self.lstm(packed)[1][0]

    model, x = seeded(Mixed).eval(), random(2, 5, 8, dtype=torch.float32)
    compressor = SVDCompressor(rank=8)
    small = compressor.fit_transform(model, x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)
    sites = select(model).sites
    data = batches("Test", x, model)
    names = list(dict.fromkeys(site.users[0][0] for site in sites))
    order = list(calls_in_order(model, names, list(data), look(model, names, data).calls))
    expected = ["block.self_attn", "block.linear1", "block.linear2", "attention", "lstm"]
    assert order == expected


@pytest.mark.parametrize("caller", MODES.values(), ids=MODES)
def test_a_fit_is_the_same_in_every_mode_of_its_caller(caller):
    model = seeded(lambda: nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)))
    x = random(40, 9, dtype=torch.float32)
    expected = SVDCompressor(rank=3).fit_transform(model, x)
    with caller():
        small = SVDCompressor(rank=3).fit_transform(model, x)
    for one, other in zip(small.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
