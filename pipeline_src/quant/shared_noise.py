"""Rounding with noise that the reader knows: codes that need fewer bits.

Stochastic rounding throws its noise away. Ours is a function of (seed, row, feature),
and backward draws it again for Dropout in any case, so that decoding may use it for
free. A value x in [0, 1] with its uniform noise u is coded by the number of thresholds
below it, and thresholds move with u; the reader, who knows u, knows where they were.

**One threshold** (a bit): t(u) = A u + (1 - A) u**M rises from 0 to 1. The code is
c = [x > t(u)], and stands for

    d = K + t'(u) (c - (1 - u)**2),        K = mean over u of (1 - u)**2 t'(u).

The last term has mean K without c, and the mean of t' c is the integral of t' up to
where t = x, which is x. So d is unbiased for every x, whatever law x follows. The law
decides the variance. For x of distribution function F, and thresholds of density p, the
best estimate given u sets aside the mean of c, 1 - F(t(u)), and

    variance = integral of F (1 - F) / p  -  variance of x,

least for p in proportion to sqrt(F (1 - F)): its square of the integral less var x. A
normal law's half with its end at R standard deviations has 0.40 at R = 3 and 0.46 at
R = 4 (variances), at best; A = 0.6, M = 9 and (1 - u)**2 for the mean of c come to 0.45
and 0.53, and stochastic rounding to the two ends, x R (R - x R) in the mean, to 1.40
and 2.19. Small M, because rows that share an end are few and R is 3 to 4.

**Several thresholds** (S = 7 or 127): x = G(s), G(s) = (s + s**2) / 2, and s is rounded
with subtractive dither: the code is c = floor(S s + u), which stands for
r = (c + 1/2 - u) / S. The error e = r - s is uniform over a bin whatever s is (Roberts,
1962), half the variance of stochastic rounding. Bins are finer near 0, where most
values lie. The mean of G(s + e) is G(s) + (mean of e**2) / 2, so

    d = G(r) - 1 / (24 S**2)

is unbiased for every x. Its variance, (1/2 + s)**2 / (12 S**2) and a term in 1 / S**4,
is 0.71 of that of even bins for a normal law's half at R = 3.5.

Estimates leave [0, 1]: a value near 0 could not have the right mean otherwise.

Where x is multiplied by a mean over all nodes that holds the same estimate, the square
of d enters, and its mean is too large by the variance. `estimate_variance` is an
unbiased estimate of that, from code and noise alone, with which the term is mended.

The noise u takes 2**16 values, midpoints of equal intervals. A threshold that falls
into the interval of u is met half an interval late or early: the mean of d is off by
at most 2**-17 t'(u) <= 2**-14.9 with one threshold, and 2**-17 of a bin with several.
"""

import torch
from torch import Tensor

_LINEAR = 0.6  # A
_POWER = 9  # M
# The mean over u of (1 - u)**2 t'(u).
_MEAN = _LINEAR / 3 + (1 - _LINEAR) * 2 / ((_POWER + 1) * (_POWER + 2))
# Estimates lie at most this many reaches from the middle: |d| at u = 1.
LARGEST_ESTIMATE = _MEAN + _LINEAR + (1 - _LINEAR) * _POWER


def round_to_level(
    distance: Tensor,  # from the middle, >= 0
    reach: Tensor,  # the largest distance of the block's side, >= 0
    noise: Tensor,  # in (0, 1)
    steps: int,  # thresholds: levels less 1
) -> Tensor:
    """Level of each value, int32 from 0 to steps."""
    if steps == 1:
        return (distance > _threshold(noise) * reach).to(torch.int32)
    # A side of no width holds nothing but its edge.
    share = distance * torch.where(reach > 0, 1.0 / reach, 0.0)
    position = torch.sqrt(0.25 + 2.0 * share) - 0.5
    return torch.clamp((position * steps + noise).to(torch.int32), 0, steps)


def estimate_share(
    level: Tensor,  # int32 from 0 to steps
    noise: Tensor,  # that the level was found with
    steps: int,
) -> Tensor:
    """Unbiased estimate of distance / reach."""
    if steps == 1:
        code = level.to(torch.float32)
        return _MEAN + _gap(noise) * (code - (1.0 - noise) * (1.0 - noise))
    position = _position(level, noise, steps)
    return 0.5 * (position + position * position) - 1.0 / (24 * steps**2)


def estimate_variance(
    level: Tensor,  # int32 from 0 to steps
    noise: Tensor,  # that the level was found with
    steps: int,
) -> Tensor:
    """Unbiased estimate of the variance of estimate_share, for the share coded here."""
    if steps == 1:
        share = estimate_share(level, noise, steps)
        # The mean of 2 t t' c is the share's square.
        square = 2.0 * _threshold(noise) * _gap(noise) * level.to(torch.float32)
        return share * share - square
    slope = 0.5 + _position(level, noise, steps)
    return slope * slope * (1.0 / (12 * steps**2)) - 1.0 / (180 * steps**4)


def _threshold(noise: Tensor) -> Tensor:
    return noise * (_LINEAR + (1 - _LINEAR) * _eighth_power(noise))


def _gap(noise: Tensor) -> Tensor:
    """Derivative of the threshold: what a code of 1 adds."""
    return _LINEAR + ((1 - _LINEAR) * _POWER) * _eighth_power(noise)


def _eighth_power(noise: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return noise**8  # squared thrice there, and noise is not written out 8 times
    square = noise * noise
    fourth = square * square
    return fourth * fourth


def _position(level: Tensor, noise: Tensor, steps: int) -> Tensor:
    return (level.to(torch.float32) + (0.5 - noise)) * (1.0 / steps)
