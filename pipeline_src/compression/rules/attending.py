"""Scaled dot-product attention, computed again for backward.

With P = softmax(q k^T / sqrt(d)) and the output P v, gradients meet q and k inside of
softmax, and v in one place,

    grad P = (grad output) v^T,    grad v = P^T (grad output),

which the gradients of q and k are linear in. So q and k are kept as they are, v in
codes of its own; P, and the output, are made again of them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.rules.derivatives import codes_of
from pipeline_src.compression.sources import Source, whole
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged, watch


def attention(
    keeper: Keeper,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **named: Any,
) -> Tensor:
    """Rule for functional.scaled_dot_product_attention without Dropout."""
    if (
        codes_of(keeper, value) is None
        or dropout_p > 0.0
        or (attn_mask is not None and attn_mask.requires_grad)
        or not query.dtype == key.dtype == value.dtype
    ):
        return func(query, key, value, attn_mask, dropout_p, is_causal, **named)
    with torch.no_grad():
        output = func(query, key, value, attn_mask, 0.0, is_causal, **named)
    return _Attention.apply(
        query,
        key,
        value,
        Known(output),
        (keeper.exact(query), keeper.exact(key), keeper.source_of_its_own(value)),
        watch([("a mask of attention", attn_mask)]),
        {"is_causal": is_causal, **named},
    )


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (..., num_queries, width)
        key: Tensor,  # (..., num_keys, width)
        value: Tensor,  # (..., num_keys, num_values)
        output: Known,
        sources: tuple[Source, Source, Source],
        mask: Any,
        named: dict[str, Any],
    ) -> Tensor:
        ctx.sources, ctx.mask, ctx.named = sources, mask, named
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        check_unchanged(ctx.mask)
        mask = ctx.mask[0].tensor if ctx.mask else None
        needed = ctx.needs_input_grad[:3]
        parts = [
            whole(source).detach().requires_grad_(wanted)
            for source, wanted in zip(ctx.sources, needed, strict=True)
        ]
        with torch.enable_grad():
            query, key, value = parts
            output = functional.scaled_dot_product_attention(
                query, key, value, mask, **ctx.named
            )
        wanted = [one for one in parts if one.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradient))
        gradients = [next(found) if one.requires_grad else None for one in parts]
        return *gradients, None, None, None, None


RULES: dict[Any, Any] = {functional.scaled_dot_product_attention: attention}
