"""How far a compressed gradient is from the exact one, as bias and as variance.

Errors of n draws, each over the norm of the gradient it belongs to, are vectors e_i.
The mean of |e_i|**2 is the error. What is left of it when draws are averaged is the
bias, the square of the mean error; the rest is variance, which training averages out.

The square of the mean of n vectors holds a share 1 / n of the variance, which would
show a bias where there is none. Products of different draws hold none of it: the mean
of e_i · e_j over all pairs i != j is an unbiased estimate of the squared bias, and may
come out below 0. Its standard error is the jackknife's, leaving out a draw at a time:
right where there is a bias, and up to 1.4 (n - 1) / (n - 2) times too large where there
is none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientError:
    """Squared errors over the square of the exact gradient; NaN: too few draws."""

    total: float  # mean over draws
    bias: float  # part that no number of draws averages out; near 0, of either sign
    bias_standard_error: float

    @property
    def variance(self) -> float:
        """The part that does average out."""
        return self.total - self.bias


def split_error(
    estimates: Tensor,  # (draws, num_parameters)
    truths: Tensor,  # the same: the exact gradient that each draw estimates
) -> GradientError:
    """Bias and variance of an estimate; bias needs 2 draws, its standard error 3."""
    norms = torch.linalg.vector_norm(truths, dim=1, keepdim=True)
    errors = ((estimates - truths) / norms).double()
    products = errors @ errors.T
    count = len(products)
    total = float(products.diagonal().mean())
    if count < 2:
        return GradientError(total, math.nan, math.nan)
    # Sum of the products of each draw with the others.
    with_others = products.sum(dim=1) - products.diagonal()
    pairs = float(with_others.sum())
    bias = pairs / (count * (count - 1))
    if count == 2:
        return GradientError(total, bias, math.nan)
    without_one = (pairs - 2 * with_others) / ((count - 1) * (count - 2))
    spread = (without_one - without_one.mean()).square().sum()
    standard_error = math.sqrt(float(spread) * (count - 1) / count)
    return GradientError(total, bias, standard_error)
