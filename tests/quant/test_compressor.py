import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.quant.blockwise import PACKABLE_BITS
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.projection import projection
from pipeline_src.training.meters import measure_memory

SEED = torch.tensor(20231, dtype=torch.int32)
CPU = torch.device("cpu")
UNIT_ROUNDOFF = 2.0**-24  # of float32
NARROW_CENTRE = torch.tensor([0.0, 1.14, 1.86, 3.0])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gamma(k):
    """Relative error bound of a float32 sum of k products, in any order."""
    return k * UNIT_ROUNDOFF / (1 - k * UNIT_ROUNDOFF)


@pytest.mark.parametrize("bits", [*PACKABLE_BITS, 32])
@settings(max_examples=30)
@given(data=st.data())
def test_bytes_are_the_sum_over_tensors_and_the_formula(bits, data):
    """ceil(N R / G) blocks of G codes and 4 bytes each, and 4 bytes of seed.

    Where G codes do not fill whole bytes, 8 / bits / gcd(8 / bits, G) blocks share
    them, and their number is rounded up to a multiple of that.
    """
    num_nodes = data.draw(st.integers(1, 40))
    num_features = data.draw(st.integers(1, 40))
    ratio = data.draw(st.sampled_from([1, 2, 8]))
    block_size = data.draw(st.integers(1, 100))
    recipe = Compressor(bits, block_size, ratio, compile="false")
    kept = recipe.compress(normal(num_nodes, num_features), SEED)
    numel = num_nodes * math.ceil(num_features / ratio)
    codes_per_byte = 8 // bits if bits < 32 else 1
    sharing = codes_per_byte // math.gcd(codes_per_byte, block_size)
    blocks = sharing * math.ceil(numel / (block_size * sharing))
    codes = blocks * block_size * bits // 8 + 4 * blocks
    expected = (4 * numel if bits == 32 else codes) + 4
    assert kept.nbytes == expected
    assert sum(t.untyped_storage().nbytes() for t in kept.tensors[:-1]) + 4 == expected
    assert kept.decompress().shape == (num_nodes, num_features)


@given(num_nodes=st.integers(1, 30), num_features=st.integers(1, 30), bits=st.just(32))
def test_32_bits_keep_values_exactly(num_nodes, num_features, bits):
    x = normal(num_nodes, num_features) * 10.0 ** normal(num_nodes, 1)
    kept = Compressor(bits).compress(x, SEED)
    assert torch.equal(kept.decompress(), x)
    gradient = normal(num_nodes, 5, seed=1)
    assert torch.equal(kept.weight_gradient(gradient), gradient.T @ x)


def test_32_bits_with_a_projection_lose_only_what_it_loses():
    x = normal(20, 16)
    S = projection(SEED, 16, 4)
    kept = Compressor(32, projection_ratio=4).compress(x, SEED)
    assert torch.equal(kept.projected(), x @ S)
    assert torch.equal(kept.decompress(), x @ S @ S.T)


@pytest.mark.parametrize("boundaries", [None, NARROW_CENTRE], ids=["even", "narrow"])
@pytest.mark.parametrize("ratio", [1, 4])
def test_decompressed_values_are_unbiased(ratio, boundaries):
    """The mean over n seeds lies within 5 standard errors of the activation.

    The noise of rounding is a multiple of 2**-16, whose midpoints bias a value by at
    most 2**-17 of a bin; unprojecting adds R such biases, each over sqrt(R). A bin of
    a block is at most its range, at most twice the largest value, which projection
    raises by at most D / sqrt(R); bfloat16 and float32 add less than half of it again.
    """
    n = 1500
    num_features, num_projected = 8, 8 // ratio
    x = normal(6, num_features)
    recipe = Compressor(2, 2 * num_projected, ratio, boundaries, "false")
    decoded = torch.stack(
        [
            recipe.compress(x, seed).decompress()
            for seed in torch.arange(n, dtype=torch.int32)
        ]
    ).double()
    standard_error = decoded.std(dim=0) / math.sqrt(n)
    growth = num_features if ratio > 1 else 1  # D / sqrt(R) times R / sqrt(R)
    resolution = 3 * float(x.abs().max()) * growth * 2.0**-17
    error = (decoded.mean(dim=0) - x).abs()
    assert torch.all(error <= 5 * standard_error + resolution)
    assert torch.all(standard_error > 0)


@pytest.mark.parametrize("ratio", [1, 4])
def test_weight_gradient_is_unbiased(ratio):
    """Mean over n seeds within 5 standard errors of gᵀ x; rounding as above."""
    n, num_nodes = 1500, 6
    x, gradient = normal(num_nodes, 8), normal(num_nodes, 3, seed=1)
    recipe = Compressor(1, 8, ratio, compile="false")
    products = torch.stack(
        [
            recipe.compress(x, seed).weight_gradient(gradient)
            for seed in torch.arange(n, dtype=torch.int32)
        ]
    ).double()
    standard_error = products.std(dim=0) / math.sqrt(n)
    largest = 3 * float(x.abs().max()) * (8 if ratio > 1 else 1) * 2.0**-17
    resolution = largest * gradient.abs().sum(dim=0).double()[:, None]
    error = (products.mean(dim=0) - gradient.double().T @ x.double()).abs()
    assert torch.all(error <= 5 * standard_error + resolution)


@pytest.mark.parametrize("bits", [*PACKABLE_BITS, 32])
@pytest.mark.parametrize("ratio", [1, 8])
def test_weight_gradient_equals_the_product_with_the_decompressed(bits, ratio):
    """(gᵀ p) Sᵀ and gᵀ (p Sᵀ) differ by what float32 rounds, and by no more.

    Each is a chain of two products of inner dimensions N and R. A float32 product of
    inner dimension k is off by at most gamma(k) |A| |B|, so each chain by at most
    (gamma(N) + gamma(R) + gamma(N) gamma(R)) |gᵀ| |p| |Sᵀ|, and both by twice that.
    """
    num_nodes, num_features = 50, 24
    x, gradient = normal(num_nodes, num_features), normal(num_nodes, 7, seed=1)
    kept = Compressor(bits, 6, ratio, compile="false").compress(x, SEED)
    inner = num_features // ratio
    S = projection(SEED, num_features, inner) if ratio > 1 else torch.eye(inner)
    size = gradient.abs().T.double() @ kept.projected().abs().double()
    size = size @ S.abs().T.double()
    chain = gamma(num_nodes) + gamma(inner) + gamma(num_nodes) * gamma(inner)
    difference = kept.weight_gradient(gradient) - gradient.T @ kept.decompress()
    assert torch.all(difference.abs() <= 2 * chain * size)


def test_weight_gradient_never_makes_the_whole_activation():
    """The step peak stays below N x D float32; decompressing needs at least that."""
    num_nodes, num_features = 500, 512
    recipe = Compressor(2, 64, 64, compile="false")
    kept = recipe.compress(normal(num_nodes, num_features), SEED)
    gradient = normal(num_nodes, 4, seed=1)
    whole = 4 * num_nodes * num_features
    product, use = measure_memory(lambda: kept.weight_gradient(gradient), CPU)
    assert product.shape == (4, num_features)
    assert use.peak < whole / 2
    assert measure_memory(kept.decompress, CPU)[1].peak >= whole


def test_a_kept_activation_reads_itself_from_the_tensors_handed_back():
    """Description and tensors may part and meet again; nothing else is consulted."""
    kept = Compressor(4, 16, 2, compile="false").compress(normal(30, 16), SEED)
    description = kept.without_tensors()
    assert description.nbytes == 0
    read = description.read(tuple(tensor.clone() for tensor in kept.tensors))
    assert torch.equal(read.decompress(), kept.decompress())


def test_seeds_differ_in_rounding_and_in_projection():
    x = normal(30, 16)
    for recipe in (Compressor(2, 16, compile="false"), Compressor(32, 1, 2)):
        one = recipe.compress(x, SEED).projected()
        assert torch.equal(one, recipe.compress(x, SEED).projected())
        assert not torch.equal(one, recipe.compress(x, SEED + 1).projected())


@pytest.mark.parametrize("bits", [*PACKABLE_BITS, 32])
@pytest.mark.parametrize("ratio", [1, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_noticed(bits, ratio, bad):
    recipe = Compressor(bits, 8, ratio, compile="false")
    x = normal(20, 16)
    assert recipe.compress(x, SEED).is_finite
    x[7, 3] = bad
    assert not recipe.compress(x, SEED).is_finite


def test_on_another_device_a_recipe_is_the_same():
    recipe = Compressor(2, 16, 4, NARROW_CENTRE, "false")
    moved = recipe.to(CPU)
    assert torch.equal(moved.boundaries, NARROW_CENTRE)
    fields = ("bits", "block_size", "projection_ratio", "compile")
    assert all(getattr(moved, name) == getattr(recipe, name) for name in fields)
    assert Compressor(2, 16).to(torch.device("meta")).boundaries is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 3}, r"bits must be one of .*, got 3"),
        ({"bits": 2, "block_size": 0}, r"block_size must be at least 1, got 0"),
        ({"bits": 2, "projection_ratio": 0}, r"projection_ratio .* 1 .*, got 0"),
        ({"bits": 32, "projection_ratio": 0}, r"projection_ratio .* 1 .*, got 0"),
        ({"bits": 2, "boundaries": [0, 3]}, r"of 3 bins must be 4 values, got 2"),
        (
            {"bits": 2, "boundaries": [0, 2, 1, 3]},
            r"increase strictly from 0 to 3, got \[0.0, 2.0, 1.0, 3.0\]",
        ),
        ({"bits": 2, "boundaries": [0, 1, 1, 3]}, r"increase strictly from 0 to 3"),
        ({"bits": 2, "boundaries": [0.5, 1, 2, 3]}, r"increase strictly from 0 to 3"),
        ({"bits": 2, "boundaries": [0, 1, 2, 4]}, r"increase strictly from 0 to 3"),
        (
            {"bits": 2, "boundaries": [0, math.nan, 2, 3]},
            r"increase strictly from 0 to 3",
        ),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(fields, message):
    if "boundaries" in fields:
        boundaries = torch.tensor(fields["boundaries"], dtype=torch.float32)
        fields = {**fields, "boundaries": boundaries}
    with pytest.raises(ValueError, match=message):
        Compressor(**fields)
