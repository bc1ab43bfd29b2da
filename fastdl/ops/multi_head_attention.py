"""multi_head_attention_forward and MultiheadAttention: torch's function and module on fastdl."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling, is_exporting
from torch.nn.functional import linear
from torch.overrides import has_torch_function

from fastdl import _C
from fastdl.ops.attention import scaled_dot_product_attention
from fastdl.ops.dropout import dropout
from fastdl.ops.multi_head_masks import are_covered, merged

Three = tuple[Tensor, Tensor, Tensor]
Output = tuple[Tensor, Tensor | None]


class Layer(NamedTuple):
    """What a layer is, with torch's names."""

    heads: int
    in_weight: Tensor | None  # packed, (3 E, E); or else three
    separate: tuple[Tensor | None, Tensor | None, Tensor | None]
    in_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    add_zero_attn: bool
    dropout_p: float
    out_weight: Tensor
    out_bias: Tensor | None


class Call(NamedTuple):
    """What a call wants, with torch's names."""

    key_padding_mask: Tensor | None
    need_weights: bool
    attn_mask: Tensor | None
    average_attn_weights: bool
    is_causal: bool
    batch_first: bool


def _is_covered(inputs: Three, layer: Layer, call: Call) -> bool:
    """Whether torch would take this call and this file computes it."""
    if not all(isinstance(x, Tensor) and not x.is_nested for x in inputs):
        return False
    if any(x.layout != torch.strided for x in inputs):
        return False
    traced = is_exporting() if is_compiling() else torch._C._is_tracing()
    if traced or has_torch_function(inputs):
        return False
    query, key, value = inputs
    if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
        return False
    embed_dim = query.shape[-1]
    if embed_dim % layer.heads != 0 or key.shape[:-1] != value.shape[:-1]:
        return False
    if layer.in_weight is not None:
        if layer.in_weight.shape != (3 * embed_dim, embed_dim) or key.shape != value.shape:
            return False
    elif any(
        weight is None or weight.shape != (embed_dim, x.shape[-1])
        for weight, x in zip(layer.separate, inputs, strict=True)
    ):
        return False
    if (layer.bias_k is None) != (layer.bias_v is None):
        return False
    batch_dim = 0 if call.batch_first else 1
    if query.dim() == 3 and query.shape[batch_dim] != key.shape[batch_dim]:
        return False
    masks = (call.key_padding_mask, call.attn_mask)
    return are_covered(*masks, query, key, layer.heads, batch_dim) and not (
        call.is_causal and call.attn_mask is None
    )


def _projected(inputs: Three, layer: Layer) -> Three:
    """In as few products as there are different inputs; by a packed weight, views of the result."""
    query, key, value = inputs
    weight, bias, embed_dim = layer.in_weight, layer.in_bias, query.shape[-1]
    if weight is not None and query is key and key is value:
        q, k, v = linear(query, weight, bias).chunk(3, -1)
        return q, k, v
    b_q, b_k, b_v = (None, None, None) if bias is None else bias.chunk(3)
    if weight is not None and key is value:
        b_rest = None if bias is None else bias[embed_dim:]
        k, v = linear(key, weight[embed_dim:], b_rest).chunk(2, -1)
        return linear(query, weight[:embed_dim], b_q), k, v
    w_q, w_k, w_v = layer.separate if weight is None else weight.chunk(3)
    assert w_q is not None and w_k is not None and w_v is not None
    return linear(query, w_q, b_q), linear(key, w_k, b_k), linear(value, w_v, b_v)


def _with_extra_keys(k: Tensor, v: Tensor, layer: Layer) -> tuple[Tensor, Tensor, int]:
    """Keys and values (B, H, S, D) with those of torch's options behind them, and their number."""
    batch, heads, _, head_dim = k.shape
    rows_k, rows_v = [k], [v]
    if layer.bias_k is not None and layer.bias_v is not None:
        for rows, bias in ((rows_k, layer.bias_k), (rows_v, layer.bias_v)):
            rows.append(bias.view(1, heads, 1, head_dim).expand(batch, -1, -1, -1))
    if layer.add_zero_attn:
        zero = k.new_zeros(()).expand(batch, heads, 1, head_dim)
        rows_k.append(zero)
        rows_v.append(zero)
    extra = len(rows_k) - 1
    return (torch.cat(rows_k, 2), torch.cat(rows_v, 2), extra) if extra else (k, v, 0)


def _with_weights(
    q: Tensor, k: Tensor, v: Tensor, masks: tuple[Tensor | None, ...], dropout_p: float
) -> tuple[Tensor, Tensor]:
    """The output and the weights, after dropout as in torch."""
    scores = q * math.sqrt(1.0 / q.shape[-1]) @ k.transpose(-2, -1)
    for mask in masks:
        if mask is not None:
            hides = mask.dtype == torch.bool
            scores = scores.masked_fill(mask, -math.inf) if hides else scores + mask
    weights = scores.softmax(-1)
    if dropout_p > 0.0:
        weights = dropout(weights, dropout_p)
    return weights @ v, weights


def _attention(inputs: Three, layer: Layer, call: Call) -> Output | None:
    """Output and weights; None where native torch is to compute the call or raise its error."""
    if not _is_covered(inputs, layer, call):
        if not is_compiling():
            _C.hand_over("multi_head_attention_forward", "inputs or masks are not covered")
        return None
    padding, attn_mask, is_batched = call.key_padding_mask, call.attn_mask, inputs[0].dim() == 3
    if padding is not None and attn_mask is not None and padding.dtype != attn_mask.dtype:
        warnings.warn(
            "Support for mismatched key_padding_mask and attn_mask "
            "is deprecated. Use same type for both instead.",
            stacklevel=3,
        )
    split = (layer.heads, inputs[0].shape[-1] // layer.heads)
    q, k, v = (x.view(*x.shape[:-1], *split) for x in _projected(inputs, layer))
    if is_batched:
        order = (0, 2, 1, 3) if call.batch_first else (1, 2, 0, 3)
        q, k, v = (x.permute(order) for x in (q, k, v))
    else:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        padding = None if padding is None else padding[None]
    k, v, extra = _with_extra_keys(k, v, layer)
    # With weights, or extra keys and padding, torch takes the mask and not the hint.
    causal = call.is_causal and not call.need_weights and (padding is None or not extra)
    if attn_mask is not None:
        of_mask = (len(q), layer.heads) if attn_mask.dim() == 3 else (1, 1)
        attn_mask = attn_mask.view(*of_mask, *attn_mask.shape[-2:])
    if extra:
        attn_mask = None if attn_mask is None else native.pad(attn_mask, (0, extra))
        padding = None if padding is None else native.pad(padding, (0, extra))
    weights = None
    if call.need_weights:
        of_keys = None if padding is None else padding[:, None, None]
        mixed, weights = _with_weights(q, k, v, (attn_mask, of_keys), layer.dropout_p)
        weights = weights.mean(1) if call.average_attn_weights else weights
    else:
        mask = merged(padding, attn_mask, causal)
        mixed = scaled_dot_product_attention(q, k, v, mask, layer.dropout_p)
    if not is_batched:
        mixed, weights = mixed[0].transpose(0, 1), None if weights is None else weights[0]
    else:
        mixed = mixed.permute((0, 2, 1, 3) if call.batch_first else (2, 0, 1, 3))
    return linear(mixed.flatten(-2), layer.out_weight, layer.out_bias), weights


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Output:
    """``torch.nn.functional.multi_head_attention_forward`` on :func:`scaled_dot_product_attention`.

    Arguments, shapes, results and errors are torch's. Queries, keys and values go to the kernel as
    views of the projections. Without ``need_weights`` no tensor of L x S is made:
    ``key_padding_mask`` becomes one interval of keys a sequence (on the CPU, where it is one), or
    stays (B, S); a causal ``attn_mask`` with ``is_causal=True`` is two numbers. Float masks of only
    0 and -inf count as boolean ones on the CPU. Nested, traced and exported inputs, static keys and
    values, and what torch refuses go to native torch.
    """
    layer = Layer(
        num_heads,
        None if use_separate_proj_weight else in_proj_weight,
        (q_proj_weight, k_proj_weight, v_proj_weight),
        in_proj_bias,
        bias_k,
        bias_v,
        add_zero_attn,
        dropout_p if training else 0.0,
        out_proj_weight,
        out_proj_bias,
    )
    call = Call(key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal, False)
    fits = isinstance(query, Tensor) and query.shape[-1] == embed_dim_to_check
    if fits and static_k is None and static_v is None:
        output = _attention((query, key, value), layer, call)
        if output is not None:
            return output
    output = native.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim_to_check,
        num_heads,
        in_proj_weight,
        in_proj_bias,
        bias_k,
        bias_v,
        add_zero_attn,
        dropout_p,
        out_proj_weight,
        out_proj_bias,
        training,
        key_padding_mask,
        need_weights,
        attn_mask,
        use_separate_proj_weight,
        q_proj_weight,
        k_proj_weight,
        v_proj_weight,
        static_k,
        static_v,
        average_attn_weights,
        is_causal,
    )
    return output


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` on :func:`multi_head_attention_forward`.

    With ``batch_first`` the output is contiguous, where torch's is a transposed view.
    """

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
    ) -> Output:
        if isinstance(query, torch.fx.Proxy):  # a leaf, as torch's class is one for torch.fx
            given = (query, key, value, key_padding_mask, need_weights, attn_mask)
            recorded: Output = query.tracer.create_proxy(
                "call_module",
                query.tracer.path_of_module(self),
                (*given, average_attn_weights, is_causal),
                {},
            )
            return recorded
        layer = Layer(
            self.num_heads,
            self.in_proj_weight,
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight),
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout if self.training else 0.0,
            self.out_proj.weight,
            self.out_proj.bias,
        )
        call = Call(
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
            self.batch_first,
        )
        output = _attention((query, key, value), layer, call)
        if output is not None:
            return output
        return super().forward(
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
        )
