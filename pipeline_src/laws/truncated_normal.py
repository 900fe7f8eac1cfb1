"""The normal law, cut to the interior of a block, that fits counted positions best.

Its density is exp(natural . (t, t**2)) on t = -1..1, up to a factor: an exponential
family with two natural parameters, whose log-likelihood is concave. Newton's method
finds the greatest likelihood on the cells themselves, so nothing is integrated.
"""

import numpy as np

from pipeline_src.laws.cells import MIDDLES, NUM_CELLS, moments

# Sufficient statistics of a truncated normal, at the cells, in t = -1..1.
_POWERS = np.stack([2 * MIDDLES - 1, (2 * MIDDLES - 1) ** 2])


def fit_truncated(cells: np.ndarray) -> np.ndarray:
    """Natural parameters (2,) of the truncated normal of greatest likelihood.

    The log-likelihood of an exponential family is concave, and greatest where the mean
    of (t, t**2) is the observed one. If that is at a positive second parameter, the
    density would be least inside: the closest normal is the limit, an exponential.
    """
    fitted = _maximize(cells, free=2)
    return fitted if fitted[1] <= 0 else _maximize(cells, free=1)


def refit_truncated(
    fitted: np.ndarray,  # (2,) natural parameters, fit_truncated(whole)
    whole: np.ndarray,  # (NUM_CELLS,)
    cells: np.ndarray,  # (replicates, NUM_CELLS), each close to whole
) -> np.ndarray:
    """Natural parameters (replicates, 2) after one Newton step from those of whole.

    Averages of resamples lie within O(n**-1/2) of the observed, so a step leaves an
    error of O(1 / n).
    """
    moved = _average_powers(cells) - _average_powers(whole)
    _, curvature = _truncated_moments(fitted)
    if fitted[1] == 0:
        step = np.stack([moved[:, 0] / curvature[0, 0], np.zeros(len(moved))], 1)
    else:
        step = moved @ np.linalg.pinv(curvature)
    return fitted + step


def truncated_cells(natural: np.ndarray) -> np.ndarray:
    """Mass of the cells under density exp(natural . (t, t**2)) cut to -1..1."""
    exponent = natural @ _POWERS
    cells = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    return cells / cells.sum(axis=-1, keepdims=True)


def _maximize(cells: np.ndarray, free: int) -> np.ndarray:
    """Damped Newton ascent in the first `free` natural parameters, the others 0."""
    target = _average_powers(cells)
    mean, std = moments(cells)
    variance = (2 * std) ** 2
    natural = np.array([(2 * mean - 1) / variance, -1 / (2 * variance)])
    natural[free:] = 0
    if 2 * std < 4 / NUM_CELLS:  # narrower than two cells: cutting changes nothing
        return natural

    def cost(parameters: np.ndarray) -> float:
        exponent = parameters @ _POWERS
        top = exponent.max()
        return float(top + np.log(np.exp(exponent - top).sum()) - parameters @ target)

    current = cost(natural)
    for _ in range(100):
        average, curvature = _truncated_moments(natural)
        slope = (target - average)[:free]
        step = np.zeros(2)
        step[:free] = np.linalg.lstsq(curvature[:free, :free], slope, rcond=None)[0]
        gain = float(slope @ step[:free])  # twice what a full step is expected to gain
        if gain < 1e-14:
            break
        length = 1.0
        while cost(natural + length * step) > current - 1e-4 * length * gain:
            length /= 2
            if length < 1e-10:
                return natural
        natural = natural + length * step
        current = cost(natural)
    return natural


def _truncated_moments(natural: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (t, t**2) under the law itself."""
    cells = truncated_cells(natural)
    mean = _POWERS @ cells
    centred = _POWERS - mean[:, None]
    return mean, (centred * cells) @ centred.T


def _average_powers(cells: np.ndarray) -> np.ndarray:
    """Mean of (t, t**2) in (..., NUM_CELLS)."""
    return (cells / cells.sum(axis=-1, keepdims=True)) @ _POWERS.T
