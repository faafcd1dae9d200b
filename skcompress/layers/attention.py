"""`torch.nn.MultiheadAttention` with factorised projections."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..protocols import Factorized, Factors, Inputs, LayerKind, Memo, Slot, rows
from .linear import FactorizedLinear, linear, stored_factors
from .reparametrized import computed_names, holds_more
from .taking_over import dense_copy, matrix_reader, overrides

_INPUTS = ("q_proj", "k_proj", "v_proj")
_SETTINGS = ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first",
             "add_zero_attn")  # fmt: skip


class FactorizedMultiheadAttention(nn.Module, Factorized):
    """Multi-head attention over four projections, each dense or a chain of layers.

    Takes what `nn.MultiheadAttention.forward` takes and gives what it gives. Where none of
    the three input projections is factorised they stay one parameter, `packed_weight`:
    only so can it be shared with another layer.
    """

    kind = "attention"

    # Sends whoever looks inside to the separate `q_proj_weight`, ..., and keeps
    # nn.TransformerEncoderLayer from handing projection weights to its fused kernel.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        like: Any,
        projections: Mapping[str, nn.Module],
        packed_weight: nn.Parameter | None,
        memo: Memo,
    ):
        super().__init__()
        for name in _SETTINGS:
            setattr(self, name, getattr(like, name))
        for name, projection in projections.items():
            self.add_module(name, projection)
        self.register_parameter("packed_weight", packed_weight)
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            self.register_parameter(name, dense_copy(getattr(like, name), memo))

    def _input_weight(self, part: int) -> Tensor:
        if self.packed_weight is not None:
            return self.packed_weight.chunk(3)[part]
        return getattr(self, _INPUTS[part]).weight

    q_proj_weight = property(lambda self: self._input_weight(0))
    k_proj_weight = property(lambda self: self._input_weight(1))
    v_proj_weight = property(lambda self: self._input_weight(2))

    @property
    def in_proj_weight(self) -> Tensor | None:
        """Input projections multiplied out and concatenated; None where widths differ."""
        if self.packed_weight is not None:
            return self.packed_weight
        if not self.embed_dim == self.kdim == self.vdim:
            return None
        return torch.cat([self._input_weight(part) for part in range(3)])

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self.packed_weight is not None:
            w_q, w_k, w_v = self.packed_weight.chunk(3)
            projected = [F.linear(query, w_q), F.linear(key, w_k), F.linear(value, w_v)]
        else:
            projected = [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        if self.in_proj_bias is None:
            return projected
        return [x + bias for x, bias in zip(projected, self.in_proj_bias.chunk(3))]  # noqa: B905

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
        if not torch.jit.is_scripting() and query.is_nested:
            if attn_mask is not None or key_padding_mask is not None:
                raise RuntimeError("masks of nested tensors are not supported")
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

        q, k, v = self._projected(inputs[0], inputs[1], inputs[2])
        k = self._extend(k, self.bias_k)
        v = self._extend(v, self.bias_v)
        mask = self._merged_mask(attn_mask, key_padding_mask, q.dtype)
        q, k, v = self._by_head(q), self._by_head(k), self._by_head(v)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.mT
            shares = (scores if mask is None else scores + mask).softmax(-1)
            shares = F.dropout(shares, dropout) if dropout > 0 else shares
            mixed = shares @ v
            weights = shares.mean(1) if average_attn_weights else shares
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

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
        self, attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """One additive mask (b or 1, heads or 1, queries or 1, keys), or None."""
        n_extra = int(self.bias_k is not None) + int(self.add_zero_attn)
        merged: Tensor | None = None
        if attn_mask is not None:
            extended = F.pad(_additive(attn_mask, dtype), (0, n_extra))
            by_head = extended.dim() == 3
            merged = (
                extended.unflatten(0, (-1, self.num_heads)) if by_head else extended[None, None]
            )
        if padding is not None:
            pad = F.pad(_additive(padding, dtype), (0, n_extra))[:, None, None]
            merged = pad if merged is None else merged + pad
        return merged

    def factors(self) -> dict[str, Factors]:
        return {
            name: projection.factors()[""]
            for name, projection in self.named_children()
            if isinstance(projection, Factorized)
        }

    def to_plain(self, memo: Memo) -> str:
        return "factors inside attention, which nn.MultiheadAttention takes whole"

    def to_dense(self, memo: Memo) -> nn.Module:
        attention = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, dropout=self.dropout,
            bias=self.in_proj_bias is not None, add_bias_kv=self.bias_k is not None,
            add_zero_attn=self.add_zero_attn, kdim=self.kdim, vdim=self.vdim,
            batch_first=self.batch_first, device="meta",
        )  # fmt: skip
        if self.packed_weight is not None:
            attention.in_proj_weight = dense_copy(self.packed_weight, memo)
        elif attention._qkv_same_embed_dim:
            inputs = [p for name in _INPUTS for p in getattr(self, name).parameters()]
            attention.in_proj_weight = _multiplied(self.in_proj_weight, inputs)
        else:
            for name in _INPUTS:
                projection = getattr(self, name)
                if isinstance(projection, Factorized):
                    weight = _multiplied(projection.weight, projection.parameters())
                else:
                    weight = dense_copy(projection.weight, memo)
                setattr(attention, f"{name}_weight", weight)
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            setattr(attention, name, dense_copy(getattr(self, name), memo))
        if isinstance(self.out_proj, Factorized):
            # In place: torch has a class of its own for this layer.
            attention.out_proj.weight = _multiplied(
                self.out_proj.weight, stored_factors(self.out_proj)
            )
            attention.out_proj.bias = dense_copy(self.out_proj.bias, memo)
        else:
            attention.out_proj = copy.deepcopy(self.out_proj, memo)
        return attention


def _multiplied(weight: Tensor | None, factors: Iterable[Tensor]) -> nn.Parameter:
    assert weight is not None
    trained = any(factor.requires_grad for factor in factors)
    return nn.Parameter(weight.detach().clone(), trained)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask (True: not attended) into one that is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


class AttentionKind(LayerKind):
    """`torch.nn.MultiheadAttention`; owns the projection layer inside it."""

    types = (nn.MultiheadAttention,)
    takes_pivots = True
    takes_sparse = True

    def refusal(self, module: Any) -> str | None:
        if computed_names(module) or computed_names(module.out_proj):
            return "parametrized: torch's attention reads the parameters themselves"
        inputs = [f"{name}_weight" for name in ("in_proj", *_INPUTS)]
        expected = (*inputs, "in_proj_bias", "bias_k", "bias_v", "out_proj")
        return overrides(module, nn.MultiheadAttention) or holds_more(module, expected)

    def slots(self, module: Any) -> list[Slot]:
        packed = module.in_proj_weight
        if packed is None:
            whole = [getattr(module, f"{name}_weight") for name in _INPUTS]
            inputs = [
                Slot(name, 1, matrix_reader(p), (p,), tieable=False)
                for name, p in zip(_INPUTS, whole, strict=True)
            ]
        else:
            inputs = [
                Slot(name, 1, _third(packed, part), (packed,), part, tieable=False)
                for part, name in enumerate(_INPUTS)
            ]
        out = module.out_proj.weight
        return [*inputs, Slot("out_proj", 1, matrix_reader(out), (out,), tieable=False)]

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        projections: dict[str, nn.Module] = {}
        packed = module.in_proj_weight
        stays_packed = packed is not None and not any(name in factors for name in _INPUTS)
        for slot in self.slots(module):
            if slot.name in factors:
                bias = module.out_proj.bias if slot.name == "out_proj" else None
                chain = FactorizedLinear.from_factors(factors[slot.name], dense_copy(bias, memo))
                projections[slot.name] = chain
            elif slot.name == "out_proj":
                projections["out_proj"] = copy.deepcopy(module.out_proj, memo)
            elif packed is None:
                projections[slot.name] = linear(dense_copy(slot.parameters[0], memo))  # type: ignore[arg-type]
            elif not stays_packed:
                kept = nn.Parameter(slot.read()[0].detach().clone(), slot.requires_grad)
                projections[slot.name] = linear(kept)
        packed_weight = dense_copy(packed, memo) if stays_packed else None
        return FactorizedMultiheadAttention(module, projections, packed_weight, memo)

    def inputs(
        self, module: Any, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs]]:
        query, key, value = (call[name] for name in ("query", "key", "value"))
        padding = call["key_padding_mask"]
        # Boolean, or added to the scores: minus infinity at padding.
        keep = None if padding is None else _additive(padding, torch.float32) > -torch.inf
        keep_query = keep if _same(query, key) else None

        def sequences(x: Tensor, kept: Tensor | None) -> Inputs:
            time_first = x.dim() == 3 and not module.batch_first and not x.is_nested
            return rows(x.transpose(0, 1) if time_first else x, kept)

        yield "q_proj", sequences(query, keep_query)
        yield "k_proj", sequences(key, keep)
        yield "v_proj", sequences(value, keep)
        if "out_proj" in wanted:
            # torch multiplies by this weight inside a function where no hook can look: the
            # same attention without its last projection, on the same parameters.
            memo: Memo = {id(p): p for p in module.parameters()}
            attention = self.build(module, {}, memo).eval()
            attention.out_proj = nn.Identity()
            mixed, _ = attention(**{**call, "need_weights": False})
            yield "out_proj", sequences(mixed, keep_query)


def _same(query: Tensor, key: Tensor) -> bool:
    """Whether the queries are the keys, as in self-attention."""
    if query is key or query.is_nested or key.is_nested:
        return query is key
    same_place = query.data_ptr() == key.data_ptr() and query.stride() == key.stride()
    return same_place and query.shape == key.shape


def _third(parameter: Tensor, part: int) -> Callable[[], Tensor]:
    return lambda: parameter.chunk(3)[part][None]
