"""Random projection of features, regenerated from a seed and never stored.

S is (num_features, num_projected) with independent fair entries ±1/sqrt(num_projected)
(EXACT, Liu et al. 2022: normalised Rademacher). The mean of S Sᵀ is the identity, so
(x S) Sᵀ is an unbiased estimate of x, with a mean squared error of
(num_features - 1) / num_projected times ‖x‖² per row.

The weight gradient gᵀ x is estimated as (gᵀ (x S)) Sᵀ: in this order nothing of size
num_nodes x num_features is formed, and the product costs projection_ratio times less.
"""

import math

import torch
from torch import Tensor

from pipeline_src.quant.dtypes import as_float32, check_seed
from pipeline_src.quant.fusion import fuse, fusion_pays
from pipeline_src.quant.noise import GOLDEN, mix, row_keys

_SEED_STREAM = 0x27D4EB2F  # apart from the noise of rounding under the same seed


def count_projected(num_features: int, projection_ratio: int) -> int:
    """Width after projection, rounded up (500 features at ratio 8 become 63).

    Raises:
        ValueError: if projection_ratio is below 1.
    """
    if projection_ratio < 1:
        raise ValueError(
            f"projection_ratio must be at least 1 (1 = none), got {projection_ratio}"
        )
    return math.ceil(num_features / projection_ratio)


def projection(
    seed: Tensor,  # () int32
    num_features: int,
    num_projected: int,
    compile: str = "auto",
) -> Tensor:
    """The matrix S of this seed, float32, (num_features, num_projected)."""
    check_seed(seed)
    fused = fusion_pays(num_features * num_projected, seed.device, compile)
    return (_entries_fused if fused else _entries)(seed, num_features, num_projected)


def project(
    x: Tensor,  # (num_nodes, num_features) float32 or half
    seed: Tensor,
    num_projected: int,
    compile: str = "auto",
) -> Tensor:
    """Return x S, (num_nodes, num_projected)."""
    return as_float32(x) @ projection(seed, x.shape[1], num_projected, compile)


def unproject(
    projected: Tensor,  # (num_rows, num_projected) float32 or half
    seed: Tensor,
    num_features: int,
    compile: str = "auto",
) -> Tensor:
    """Return projected Sᵀ, (num_rows, num_features), an unbiased estimate."""
    matrix = projection(seed, num_features, projected.shape[1], compile)
    return as_float32(projected, "projected") @ matrix.T


def _entries(seed: Tensor, num_features: int, num_projected: int) -> Tensor:
    keys = row_keys(mix(seed ^ _SEED_STREAM), num_features)[:, None]
    columns = torch.arange(num_projected, dtype=torch.int32, device=seed.device)
    is_negative = mix(keys + columns * GOLDEN) < 0  # one bit of the hash
    entry = max(num_projected, 1) ** -0.5  # of nothing, where there are no features
    return torch.where(is_negative, -entry, entry).to(torch.float32)


# Of one size per layer: the matrix has no rows of nodes. Its keys are hashed anew for
# each entry, which costs a GPU less than to start a kernel for them.
_entries_fused = fuse(_entries, rows={}, one_pass=True)
