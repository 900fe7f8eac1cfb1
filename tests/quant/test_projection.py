import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.quant.noise import row_keys, uniform_pair
from pipeline_src.quant.projection import (
    count_projected,
    project,
    projection,
    unproject,
)
from tests import oracles

SEED = torch.tensor(20231, dtype=torch.int32)
STREAM = 0x27D4EB2F  # separates the projection from the noise of the same seed


def seeds(n):
    return torch.arange(n, dtype=torch.int32)


@settings(max_examples=40)
@given(
    seed=st.integers(-(2**31), 2**31 - 1),
    num_features=st.integers(1, 12),
    num_projected=st.integers(1, 12),
)
def test_signs_equal_the_scalar_oracle(seed, num_features, num_projected):
    """Signs from unsigned integers in plain Python; the seed is mixed twice."""
    matrix = projection(
        torch.tensor(seed, dtype=torch.int32), num_features, num_projected
    )
    stream = oracles.mix(oracles.mix((seed % oracles.WORD) ^ STREAM))
    for d, row in enumerate(matrix.tolist()):
        key = oracles.mix((d + stream) % oracles.WORD)
        for r, entry in enumerate(row):
            word = oracles.mix((key + r * oracles.GOLDEN) % oracles.WORD)
            sign = -1 if word >= oracles.WORD // 2 else 1
            assert math.copysign(1, entry) == sign


@pytest.mark.parametrize("num_projected", [1, 7, 16, 63])
def test_entries_are_plus_or_minus_one_over_root(num_projected):
    matrix = projection(SEED, 128, num_projected)
    assert matrix.shape == (128, num_projected)
    assert matrix.dtype == torch.float32
    entry = torch.tensor(num_projected**-0.5).item()
    assert matrix.unique().tolist() == [-entry, entry]


def test_projecting_and_back_are_products_with_the_matrix():
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(2))
    S = projection(SEED, 24, 6)
    assert torch.equal(project(x, SEED, 6), x @ S)
    assert torch.equal(unproject(x @ S, SEED, 24), x @ S @ S.T)


def test_mean_of_the_gram_matrix_is_the_identity():
    """E[S Sᵀ] = I: the diagonal in each draw, the rest in the mean.

    A diagonal entry sums R squares of a float32 number that is off by a relative
    2**-24 from R**-0.5, so it is off by 2**-23 from 1. Another entry sums R products
    of independent fair signs over R, so it has mean 0 and variance 1/R; the mean of n
    draws lies within 5 standard errors of 0.
    """
    n, num_features, num_projected = 3000, 20, 5
    gram = torch.zeros(num_features, num_features, dtype=torch.float64)
    for seed in seeds(n):
        matrix = projection(seed, num_features, num_projected).double()
        product = matrix @ matrix.T
        assert torch.all((product.diagonal() - 1).abs() <= 1.01 * 2.0**-23)
        gram += product / n
    rest = gram - torch.diag(gram.diagonal())
    assert torch.all(rest.abs() <= 5 / math.sqrt(num_projected * n))


@pytest.mark.parametrize(("num_features", "num_projected"), [(24, 3), (10, 10)])
def test_mean_squared_error_is_the_formula(num_features, num_projected):
    """(D - 1) / R times ‖x‖², within 5 standard errors over n seeds.

    Entry d of x S Sᵀ - x is the sum over k ≠ d of x_k times an entry of S Sᵀ, whose
    variance is 1/R; summed over d that is (D - 1) ‖x‖² / R. The rounding of float32
    changes an error of that size by less than its hundred-thousandth.
    """
    n = 3000
    x = torch.randn(4, num_features, generator=torch.Generator().manual_seed(0))
    squared = torch.empty(n, dtype=torch.float64)
    for index, seed in enumerate(seeds(n)):
        estimate = unproject(project(x, seed, num_projected), seed, num_features)
        squared[index] = (estimate - x).double().square().sum()
    expected = (num_features - 1) / num_projected * float(x.double().square().sum())
    tolerance = 5 * float(squared.std()) / math.sqrt(n) + 1e-5 * expected
    assert abs(float(squared.mean()) - expected) <= tolerance


def test_estimate_is_unbiased():
    """Mean over n seeds within 5 standard errors, sqrt(Σ x_k² / (R n)) over k ≠ d."""
    n, num_features, num_projected = 4000, 12, 4
    x = torch.randn(3, num_features, generator=torch.Generator().manual_seed(1))
    mean = torch.zeros(x.shape, dtype=torch.float64)
    for seed in seeds(n):
        projected = project(x, seed, num_projected)
        assert projected.shape == (3, num_projected)
        mean += unproject(projected, seed, num_features).double() / n
    squares = x.double().square()
    others = squares.sum(dim=1, keepdim=True) - squares
    bound = 5 * (others / (num_projected * n)).sqrt() + 1e-5  # and float32 arithmetic
    assert torch.all((mean - x).abs() <= bound)


def test_a_seed_gives_one_matrix_and_another_seed_another():
    matrix = projection(SEED, 64, 16)
    assert torch.equal(matrix, projection(SEED.clone(), 64, 16))
    n = matrix.numel()
    for other in (SEED + 1, -SEED, SEED ^ 2**30):
        # Fair and independent signs agree in half of n places, ± 5 deviations.
        same = (matrix == projection(other, 64, 16)).double().mean()
        assert abs(float(same) - 0.5) <= 2.5 / math.sqrt(n)


def test_signs_are_independent_of_the_rounding_noise_of_the_same_seed():
    """They agree with noise above one half in half of n places, ± 5 deviations."""
    num_features, num_projected = 128, 64
    is_negative = projection(SEED, num_features, num_projected) < 0
    columns = torch.arange(num_projected, dtype=torch.int32)
    for noise in uniform_pair(row_keys(SEED, num_features)[:, None], columns):
        same = float((is_negative == (noise > 0.5)).double().mean())
        assert abs(same - 0.5) <= 2.5 / math.sqrt(is_negative.numel())


@given(num_features=st.integers(1, 5000), ratio=st.integers(1, 64))
def test_width_after_projection_is_rounded_up(num_features, ratio):
    count = count_projected(num_features, ratio)
    assert (count - 1) * ratio < num_features <= count * ratio


def test_published_widths():
    widths = [count_projected(*pair) for pair in [(128, 8), (500, 8), (256, 8)]]
    assert widths == [16, 63, 32]


@pytest.mark.parametrize("ratio", [0, -8])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"must be at least 1 .*, got {ratio}"):
        count_projected(100, ratio)


# Each size is a kernel of its own, which hashes within a hash: long to compile.
@pytest.mark.parametrize(
    ("num_features", "num_projected"),
    [(24, 7), pytest.param(1, 5, marks=pytest.mark.slow)],
)
def test_compiled_equals_plain_to_the_bit(num_features, num_projected):
    compiled = projection(SEED, num_features, num_projected, "true")
    plain = projection(SEED, num_features, num_projected, "false")
    assert torch.equal(compiled, plain)
