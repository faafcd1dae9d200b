"""Whole networks of transformers and torch: every weight is reached, and y = W x holds."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES
from models import seeded
from statistics_cases import statistics
from torch import nn

from skcompress.network.weights import select
from skcompress.testing.untouched import check_untouched, snapshot


def watch_outputs(model, sites):
    """Outputs of every layer with one weight that is used by it alone, without the bias."""
    outputs: dict[str, list] = {}

    def keep(name):
        def hook(module, args, output):
            axis = -1 if not isinstance(module, nn.modules.conv._ConvNd) else 1
            y = output.detach().movedim(axis, -1).reshape(-1, output.shape[axis])
            outputs.setdefault(name, []).append(y if module.bias is None else y - module.bias)

        return hook

    modules = dict(model.named_modules())
    hooks = [
        modules[site.users[0][0]].register_forward_hook(keep(site.name))
        for site in sites
        if not site.slot.name
        and len(site.users) == 1
        and not isinstance(site.modules[0], nn.Embedding | nn.RNNBase)
    ]
    return outputs, hooks


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_moments_of_outputs_follow_from_those_of_inputs(name):
    model, inputs = seeded(ARCHITECTURES[name])
    model.eval()
    inputs.pop("attention_mask", None)
    inputs.pop("src_key_padding_mask", None)
    sites = select(model).sites
    outputs, hooks = watch_outputs(model, sites)
    model(**inputs)
    for hook in hooks:
        hook.remove()
    before = snapshot(model)
    found = statistics(model, [inputs])
    check_untouched(name, model, before)
    assert list(found) == [site.name for site in sites]
    assert len(outputs) >= 1
    for site in sites:
        if site.name not in outputs:
            continue
        y = torch.cat(outputs[site.name]).double()
        weight = site.slot.read().double().flatten(2)
        y = y.unflatten(1, (len(weight), -1)).transpose(0, 1)
        moments = found[site.name].moments
        assert moments.count.tolist() == [y.shape[1]] * len(weight), site.name
        expected = y.mT @ y / y.shape[1]
        predicted = weight @ moments.gram @ weight.mT
        # Untrained MobileNets let their signal die out, until float32 has no squares for it.
        assert (predicted - expected).norm() <= 1e-4 * expected.norm() + 1e-30, site.name
