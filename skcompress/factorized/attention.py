"""`torch.nn.MultiheadAttention` with factorised projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..protocols import Factors
from .kind import Factorized, LayerKind, Memo, Slot, dense_copy, overrides
from .linear import FactorizedLinear, linear

_INPUTS = ("q_proj", "k_proj", "v_proj")
_SETTINGS = ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first",
             "add_zero_attn")  # fmt: skip


class FactorizedMultiheadAttention(nn.Module, Factorized):
    """Multi-head attention over four projections, each dense or a chain of layers.

    Takes what `nn.MultiheadAttention.forward` takes and gives what it gives.
    """

    # Read by nn.TransformerEncoderLayer: anything but True keeps it from handing dense
    # projection weights to its fused kernel.
    _qkv_same_embed_dim = False

    def __init__(self, like: Any, projections: Mapping[str, nn.Module], memo: Memo):
        super().__init__()
        for name in _SETTINGS:
            setattr(self, name, getattr(like, name))
        for name, projection in projections.items():
            self.add_module(name, projection)
        self.bias_k = dense_copy(like.bias_k, memo)
        self.bias_v = dense_copy(like.bias_v, memo)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Bias of the three input projections, concatenated; None without bias."""
        biases = [getattr(self, name).bias for name in _INPUTS]
        return None if biases[0] is None else torch.cat(biases)

    @property
    def in_proj_weight(self) -> Tensor:
        """Weights of the three input projections, multiplied out and concatenated."""
        return torch.cat([getattr(self, name).weight for name in _INPUTS])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.is_nested:
            return self._forward_nested(query), None
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        inputs = [query, key, value]
        if not batched:
            inputs = [x[None] for x in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]

        q, k, v = (getattr(self, name)(x) for name, x in zip(_INPUTS, inputs, strict=True))
        k = self._extend(k, self.bias_k)
        v = self._extend(v, self.bias_v)
        mask = self._merged_mask(attn_mask, key_padding_mask, q, k.shape[1])
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.mT
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _forward_nested(self, sequences: Tensor) -> Tensor:
        """Self-attention of a nested tensor, as nn.TransformerEncoder makes of a padded one."""
        lengths = torch.tensor([len(s) for s in sequences.unbind()], device=sequences.device)
        padded = sequences.to_padded_tensor(0.0)
        beyond = torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]
        mixed, _ = self(padded, padded, padded, key_padding_mask=beyond, need_weights=False)
        rows = [row[:n] for row, n in zip(mixed, lengths.tolist(), strict=True)]
        return torch.nested.as_nested_tensor(rows)

    def _extend(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """Append bias_k or bias_v, then the zero position, to keys or values (b, s, e)."""
        if extra is not None:
            x = torch.cat([x, extra.expand(len(x), 1, -1)], dim=1)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _merged_mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, n_keys: int
    ) -> Tensor | None:
        """One additive mask (b or 1, heads or 1, queries or 1, keys), or None."""
        merged = None
        if attn_mask is not None:
            merged = _additive(attn_mask, q.dtype)
            if merged.dim() == 3:
                merged = merged.unflatten(0, (-1, self.num_heads))
            else:
                merged = merged[None, None]
            merged = F.pad(merged, (0, n_keys - merged.shape[-1]))
        if padding is not None:
            pad = F.pad(_additive(padding, q.dtype), (0, n_keys - padding.shape[-1]))
            merged = pad[:, None, None] if merged is None else merged + pad[:, None, None]
        return merged

    def to_dense(self, memo: Memo) -> nn.Module:
        attention = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, dropout=self.dropout, bias=self.q_proj.bias is not None,
            add_bias_kv=self.bias_k is not None, add_zero_attn=self.add_zero_attn, kdim=self.kdim,
            vdim=self.vdim, batch_first=self.batch_first, device="meta",
        )  # fmt: skip
        dense = {name: getattr(self, name) for name in (*_INPUTS, "out_proj")}
        trained = any(p.requires_grad for p in self.q_proj.parameters())
        with torch.no_grad():
            if attention._qkv_same_embed_dim:
                attention.in_proj_weight = nn.Parameter(self.in_proj_weight, trained)
            else:
                for name in _INPUTS:
                    weight = nn.Parameter(dense[name].weight.clone(), trained)
                    setattr(attention, f"{name}_weight", weight)
            if self.in_proj_bias is not None:
                attention.in_proj_bias = nn.Parameter(self.in_proj_bias, trained)
            attention.out_proj.weight = nn.Parameter(dense["out_proj"].weight.clone(), trained)
        attention.out_proj.bias = dense_copy(dense["out_proj"].bias, memo)
        attention.bias_k, attention.bias_v = (dense_copy(b, memo) for b in (self.bias_k, self.bias_v))
        return attention


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask (True: not attended) into one that is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


class AttentionKind(LayerKind):
    """`torch.nn.MultiheadAttention`; owns the projection layer inside it."""

    name = "MultiheadAttention"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.MultiheadAttention)

    def refusal(self, module: Any) -> str | None:
        return overrides(module, nn.MultiheadAttention)

    def slots(self, module: Any) -> list[Slot]:
        packed = module.in_proj_weight
        if packed is None:
            whole = [getattr(module, f"{name}_weight") for name in _INPUTS]
            inputs = [
                Slot(name, 1, _whole(p), (p,), tieable=False)
                for name, p in zip(_INPUTS, whole, strict=True)
            ]
        else:
            inputs = [
                Slot(name, 1, _third(packed, part), (packed,), part, tieable=False)
                for part, name in enumerate(_INPUTS)
            ]
        out = module.out_proj.weight
        return [*inputs, Slot("out_proj", 1, _whole(out), (out,), tieable=False)]

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        biases: dict[str, nn.Parameter | None] = dict.fromkeys(_INPUTS)
        if module.in_proj_bias is not None:
            thirds = module.in_proj_bias.detach().chunk(3)
            trained = module.in_proj_bias.requires_grad
            biases = {n: nn.Parameter(b.clone(), trained) for n, b in zip(_INPUTS, thirds, strict=True)}
        biases["out_proj"] = dense_copy(module.out_proj.bias, memo)
        projections: dict[str, nn.Module] = {}
        for slot in self.slots(module):
            name, bias = slot.name, biases[slot.name]
            if name in factors:
                projections[name] = FactorizedLinear.from_factors(factors[name], bias)
            else:
                kept = nn.Parameter(slot.read()[0].detach().clone(), slot.requires_grad)
                projections[name] = linear(kept, bias)
        return FactorizedMultiheadAttention(module, projections, memo)


def _whole(parameter: Tensor) -> Callable[[], Tensor]:
    return lambda: parameter[None]


def _third(parameter: Tensor, part: int) -> Callable[[], Tensor]:
    return lambda: parameter.chunk(3)[part][None]
