"""Packed rows: an oracle of one value at a time, error bounds, bytes, gathering."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from pipeline_src.quant.feature_store import (
    RANGES,
    FeatureStore,
    RowGroups,
    RowPacking,
    pack_rows,
)
from pipeline_src.quant.row_codes import count_words

PACKED = (1, 2, 4, 8, 16)
UNIT_ROUNDOFF = 2.0**-24  # of float32
METADATA = [torch.float32, torch.bfloat16]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven_rows(num_rows=13, num_features=21, seed=0):
    """Rows of very different size and offset."""
    size = torch.logspace(-3, 3, num_rows)[:, None]
    return size * (normal(num_rows, num_features, seed=seed) + normal(num_rows, 1))


def packing(range="node", rows_per_block=3, metadata=torch.float32, compile="false"):
    return RowPacking(range, rows_per_block, metadata, compile)


def oracle_codes(words, num_values, bits):
    """Code j of word w is value j * words + w, little end first, in plain Python."""
    if bits == 16:
        return [[word % 2**16 for word in row] for row in words.tolist()]
    per_row = words.shape[1]
    value = [divmod(k, per_row) for k in range(num_values)]
    return [
        [row[w] // 2 ** (bits * j) % 2**bits for j, w in value]
        for row in words.tolist()
    ]


@settings(max_examples=60)
@given(
    bits=st.sampled_from(PACKED),
    num_features=st.integers(1, 20),
    num_rows=st.integers(1, 7),
    seed=st.integers(0, 2**31),
)
def test_codes_are_the_nearest_of_the_grid(bits, num_features, num_rows, seed):
    """Each stored value is nearest among all that its row can hold, unpacked slowly."""
    x = normal(num_rows, num_features, seed=seed)
    part = pack_rows(x, bits, packing())
    assert part.words.shape[1] == count_words(num_features, bits)
    codes = torch.tensor(oracle_codes(part.words, num_features, bits))
    zero_point, scale = part.zero_point.double(), part.scale.double()
    exact = (zero_point[:, None] + scale[:, None] * codes).float()
    store = FeatureStore.pack(x, (bits,), packing())
    # code * scale is exact in float32, so one rounding is left, as here.
    assert torch.equal(store.decode(), exact)
    if bits <= 8:
        grid = zero_point[:, None] + scale[:, None] * torch.arange(2**bits)
        distance = (x.double()[:, :, None] - grid[:, None]).abs()
        chosen = distance.gather(2, codes[:, :, None])[:, :, 0]
        # A position's error decides only where two levels are equally near.
        slack = scale[:, None] * 2**bits * 4 * UNIT_ROUNDOFF
        assert torch.all(chosen <= distance.amin(dim=2) + slack)


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("range", ["node", "block", "tensor"])
@pytest.mark.parametrize("bits", PACKED)
def test_error_is_at_most_half_a_step(bits, range, metadata):
    """Half a scale, plus what float32 adds: derived, not fitted.

    With unit roundoff u, a position carries at most three roundings of num_bins and
    may exceed num_bins by two more (the scale's own), and reading adds one of a value.
    """
    x = uneven_rows()
    store = FeatureStore.pack(x, (bits,), packing(range, metadata=metadata))
    (part,) = store.parts
    owner = torch.arange(len(x)) // part.rows_per_range
    scale = part.scale.double()[owner, None]
    bound = scale * (0.5 + 6 * (2**bits - 1) * UNIT_ROUNDOFF)
    bound = bound + UNIT_ROUNDOFF * (x.double().abs() + scale)
    assert torch.all((store.decode().double() - x.double()).abs() <= bound)


@pytest.mark.parametrize("bits", PACKED)
@pytest.mark.parametrize("range", ["node", "block", "tensor"])
def test_scale_is_the_range_over_the_bins(range, bits):
    """Widened by at most 2**(bits - 23), the rounding that makes products exact."""
    x = uneven_rows(12)
    part = pack_rows(x, bits, packing(range))
    blocks = x.double().split(part.rows_per_range)
    for block, zero, scale in zip(blocks, part.zero_point, part.scale, strict=True):
        assert zero == block.min()
        width = float(block.max() - block.min())
        ratio = float(scale) * (2**bits - 1) / width
        widened = 0 if bits == 1 else 2.0 ** (bits - 23)
        assert 1 - 3 * UNIT_ROUNDOFF <= ratio <= 1 + widened + 3 * UNIT_ROUNDOFF


@pytest.mark.parametrize("bits", PACKED)
def test_bfloat16_grid_encloses_each_row(bits):
    """Zero point down, scale up: nothing is clipped."""
    x = uneven_rows()
    part = pack_rows(x, bits, packing(metadata=torch.bfloat16))
    zero_point, scale = part.zero_point.double(), part.scale.double()
    assert torch.all(zero_point <= x.double().amin(dim=1))
    # Dividing by the bins rounds once more before the scale is rounded up.
    top = zero_point + scale * (2**bits - 1) * (1 + 2 * UNIT_ROUNDOFF)
    assert torch.all(top >= x.double().amax(dim=1) * (1 - UNIT_ROUNDOFF))


@pytest.mark.parametrize("bits", PACKED)
@pytest.mark.parametrize("range", ["node", "block"])
def test_constant_rows_are_exact(range, bits):
    constant = torch.tensor([0.0, 0.1, -3.7, 1e30, 2.0**-30])
    x = constant.repeat_interleave(3)[:, None].expand(-1, 5).contiguous()
    assert torch.equal(FeatureStore.pack(x, (bits,), packing(range)).decode(), x)


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("bits", PACKED)
def test_empty_rows_are_exact_and_never_nan(bits, range, metadata):
    """CiteSeer has 15 nodes without words: no 0 / 0."""
    x = torch.zeros(7, 9)
    recipe = packing(range, metadata=metadata)
    assert torch.equal(FeatureStore.pack(x, (bits,), recipe).decode(), x)


def bag_of_weights(num_rows=12, num_features=40, seed=0):
    """A third of the entries positive, of very different sizes; the rest absent."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num_rows, num_features, generator=generator) ** 3 + 1e-3
    x *= torch.rand(x.shape, generator=generator) < 1 / 3
    x[:, 0], x[:, 1] = 0.0, 0.5
    return x


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bits", PACKED)
def test_a_support_keeps_zeros_and_nothing_else_as_zeros(bits, metadata):
    x = bag_of_weights()
    store = FeatureStore.pack(x, (bits,), packing("support", metadata=metadata))
    assert torch.equal(store.decode() == 0, x == 0)
    like = FeatureStore.pack(x, (bits,), packing(metadata=metadata))
    assert store.nbytes == like.nbytes


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
def test_one_bit_of_a_support_is_the_mean_of_what_is_present(metadata):
    x = bag_of_weights()
    decoded = FeatureStore.pack(x, (1,), packing("support", metadata=metadata)).decode()
    mean = x.double().sum(dim=1) / (x > 0).sum(dim=1)
    # A sum of float32, and rounding to the 8 bits of bfloat16's significand.
    unit = x.shape[1] * UNIT_ROUNDOFF + (2.0**-8 if metadata != torch.float32 else 0)
    expected = mean[:, None] * (x > 0)
    assert torch.all((decoded.double() - expected).abs() <= unit * expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_of_a_support_err_no_more_than_even_ones(bits):
    """Fitting starts from even levels between the least and the greatest positive."""
    x = bag_of_weights()
    decoded = FeatureStore.pack(x, (bits,), packing("support")).decode().double()
    for row, ours in zip(x.double(), decoded, strict=True):
        levels = torch.linspace(row[row > 0].min(), row.max(), 2**bits - 1)
        even = (row[row > 0][:, None] - levels).abs().amin(dim=1)
        error = (ours - row).square().sum()
        # Rounding of levels and the scale's widening, of values below 2.
        slack = 2 * len(row) * (2.0 ** (bits - 23) + 2 * 2**bits * UNIT_ROUNDOFF)
        assert error <= even.square().sum() + slack


@pytest.mark.parametrize("bits", [2, 4])
def test_levels_of_a_support_err_less_than_those_of_a_first_fit(bits):
    """A line through codes and values, and each further round only errs less.

    The first fit takes the codes of even levels; NumPy draws its line.
    """
    x = bag_of_weights()
    decoded = FeatureStore.pack(x, (bits,), packing("support")).decode().double()
    for row, ours in zip(x.double(), decoded, strict=True):
        values = row[row > 0].numpy()
        levels = np.linspace(values.min(), values.max(), 2**bits - 1)
        codes = np.abs(values[:, None] - levels).argmin(axis=1)
        (squares,) = np.polyfit(codes, values, 1, full=True)[1]
        # Rounding of levels and the scale's widening, of values below 2.
        slack = 2 * len(values) * (2.0 ** (bits - 23) + 2 * 2**bits * UNIT_ROUNDOFF)
        assert (ours - row).square().sum() <= squares + slack


def test_the_number_of_zeros_does_not_move_the_levels_of_a_support():
    """A line that is below 0 at the first code: zeros lie at the second."""
    present = torch.tensor([1 / 64] + [19 / 64] * 79 + [1.0] * 80)
    rows = [torch.cat([torch.zeros(zeros), present]) for zeros in (1, 40)]
    few, many = (pack_rows(row[None], 2, packing("support")) for row in rows)
    assert few.zero_point < 0
    # Sums of other order, of values up to 1; then the scale's last bits go.
    bound = 4 * len(present) * UNIT_ROUNDOFF + 2.0 ** (2 - 23)
    assert (few.zero_point - many.zero_point).abs() <= bound
    assert (few.scale - many.scale).abs() <= bound


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_present_values_take_the_nearest_level_that_a_support_stores(bits, metadata):
    """Levels as they are read: zero point and scale after rounding to their type.

    So many values that some lie between the middles of rounded and other levels.
    """
    x = bag_of_weights(2, 10_000)
    part = pack_rows(x, bits, packing("support", metadata=metadata))
    assert torch.all(torch.signbit(part.scale)), "the mark of a row with zeros"
    decoded = FeatureStore.pack(x, (bits,), packing("support", metadata=metadata))
    first, step = part.zero_point.double(), part.scale.double().abs()
    levels = first[:, None] + step[:, None] * torch.arange(2**bits - 1)
    distance = (x.double()[:, :, None] - levels[:, None]).abs().amin(dim=2)
    error = (decoded.decode().double() - x.double()).abs()
    # A position's error decides only where two levels are equally near; reading rounds.
    slack = (step + first.abs())[:, None] * 2**bits * 4 * UNIT_ROUNDOFF
    assert torch.all((error <= distance + slack)[x > 0])


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bits", PACKED)
def test_rows_whose_least_value_is_not_zero_have_no_support(bits, metadata):
    x = torch.cat([uneven_rows(), uneven_rows().abs() + 1.0])
    support, node = (
        FeatureStore.pack(x, (bits,), packing(range, metadata=metadata)).decode()
        for range in ("support", "node")
    )
    assert torch.equal(support, node)


@pytest.mark.parametrize("bits", [1, pytest.param(4, marks=pytest.mark.slow), 16])
def test_compiled_support_equals_plain_to_the_bit(bits):
    x = torch.cat([bag_of_weights(), normal(3, 40)])
    plain, compiled = (
        FeatureStore.pack(x, (bits,), packing("support", compile=choice))
        for choice in ("false", "true")
    )
    assert torch.equal(plain.parts[0].words, compiled.parts[0].words)
    assert torch.equal(plain.decode(), compiled.decode())


def test_one_bit_keeps_normalised_bags_of_words():
    """Values 0 and 1 / count: the two ends of each row's range."""
    words = (normal(40, 30) > 1).float()
    x = words / words.sum(dim=1, keepdim=True).clamp(min=1)
    assert torch.equal(FeatureStore.pack(x, (1,), packing()).decode(), x)


@pytest.mark.parametrize("bits", PACKED)
def test_the_released_rule_takes_means_of_rows_and_clips(bits):
    x = uneven_rows()
    store = FeatureStore.pack(x, (bits,), packing("mean_of_rows"))
    (part,) = store.parts
    low, high = x.amin(dim=1).double().mean(), x.amax(dim=1).double().mean()
    roundoff = len(x) * UNIT_ROUNDOFF * x.abs().max().double()
    assert part.zero_point.shape == part.scale.shape == (1,)
    assert (part.zero_point.double() - low).abs() <= roundoff
    top = part.zero_point.double() + part.scale.double() * (2**bits - 1)
    assert (top - high).abs() <= 3 * roundoff + (high - low) * 2.0 ** (bits - 23)
    decoded = store.decode()
    assert decoded[x < low].unique().tolist() == [float(part.zero_point)]
    assert float(decoded.max()) == float(top.float())


@pytest.mark.parametrize("range", RANGES)
def test_not_finite_values_are_seen_in_their_range(range):
    """A NaN or an infinity makes its range NaN when read, and no other."""
    for bad in (float("nan"), float("inf")):
        x = bag_of_weights(9) if range == "support" else uneven_rows(9)
        x[4, 2] = bad
        decoded = FeatureStore.pack(x, (4,), packing(range)).decode()
        size = {"node": 1, "support": 1, "block": 3}.get(range, 9)
        first = 4 // size * size
        lost = torch.zeros(9, dtype=torch.bool)
        lost[first : first + size] = True
        assert torch.isnan(decoded[lost]).all(), "zeros of a support, too"
        assert torch.isfinite(decoded[~lost]).all()


def stores():
    """Every width, range and mixture that gathering must treat alike."""
    x = uneven_rows(17, 11)
    group = torch.arange(17) * 7 % 3
    groups = RowGroups.of(group, 4)  # the last group is empty
    for range in RANGES:
        for bits in (*PACKED, 32):
            yield x, FeatureStore.pack(x, (bits,), packing(range))
        mixed = (2, 32, 8, 16)
        yield x, FeatureStore.pack(x, mixed, packing(range), groups)


def test_gathering_equals_decoding_all_then_indexing():
    index = torch.tensor([16, 0, 3, 3, 9, 12, 1])
    for x, store in stores():
        everything = store.decode()
        assert everything.shape == x.shape
        for kind in (torch.int32, torch.int64):
            assert torch.equal(store.gather(index.to(kind)), everything[index])
        assert torch.equal(store.rows(5, 11), everything[5:11])


def test_mixed_rows_equal_those_of_a_store_of_their_own_width():
    x = uneven_rows(17, 11)
    group = torch.arange(17) * 7 % 3
    groups = RowGroups.of(group, 3)
    mixed = FeatureStore.pack(x, (2, 32, 8), packing(), groups).decode()
    for g, bits in enumerate((2, 32, 8)):
        alone = FeatureStore.pack(x, (bits,), packing()).decode()
        assert torch.equal(mixed[group == g], alone[group == g])


@pytest.mark.parametrize("metadata", METADATA, ids=["float32", "bfloat16"])
def test_nbytes_is_the_formula_and_that_of_the_tensors(metadata):
    """Rows of whole bytes, two numbers per range, and 4 bytes per node of a mixture."""
    x = uneven_rows(17, 11)
    each = metadata.itemsize
    ranges_of = {"node": 17, "block": 6, "tensor": 1, "mean_of_rows": 1}
    for range, ranges in ranges_of.items():
        for bits in PACKED:
            store = FeatureStore.pack(x, (bits,), packing(range, metadata=metadata))
            row = -(-11 * bits // 8)
            assert store.nbytes == 17 * row + 2 * each * ranges
    groups = RowGroups.of(torch.tensor([0] * 10 + [1] * 7), 2)
    store = FeatureStore.pack(x, (1, 32), packing(metadata=metadata), groups)
    assert store.nbytes == 10 * (2 + 2 * each) + 7 * 11 * 4 + 17 * 4
    tensors = [store.position] + [
        tensor
        for part in store.parts
        for tensor in (part.words, part.zero_point, part.scale)
    ]
    storages = {t.untyped_storage().data_ptr(): t for t in tensors if t is not None}
    held = sum(t.untyped_storage().nbytes() for t in storages.values())
    assert store.nbytes == held


def test_one_bit_with_bfloat16_metadata_packs_cora_thirty_times():
    """Input and hidden features of a GCN of 16: nominal 32, bound 30.6, padded 30.5."""
    widths = (1433, 16)
    recipe = packing(metadata=torch.bfloat16)
    stores = [FeatureStore.pack(torch.zeros(2708, w), (1,), recipe) for w in widths]
    packed = sum(store.nbytes for store in stores)
    assert packed == 2708 * (180 + 4 + 2 + 4)
    assert 30 <= 4 * 2708 * sum(widths) / packed <= 30.6


# At once the least and the most bits, and several in one store; those between take as
# long again and pack by the same code.
@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(bits, marks=[pytest.mark.slow] * (bits in (2, 4, 8)))
        for bits in [*PACKED, (1, 4, 32)]
    ],
    ids=str,
)
def test_compiled_equals_plain_to_the_bit(bits):
    check_compiled(bits, "cpu")


def test_one_compilation_gathers_from_any_number_of_rows():
    """Also where numbers of rows are equal; a width of its own takes another."""
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    for num_rows, num_indices in [(24, 24), (24, 8), (1000, 3), (8, 24)]:
        for range in ("node", "support"):
            x = uneven_rows(num_rows, 21)
            plain = FeatureStore.pack(x, (2,), packing(range))
            index = torch.arange(num_indices) % num_rows
            gathered = replace(plain, compile="true").gather(index)
            assert torch.equal(gathered, plain.gather(index))
    assert counters["stats"]["unique_graphs"] == before + 1
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [*PACKED, (1, 4, 32)], ids=str)
def test_compiled_equals_plain_on_a_gpu(bits):
    check_compiled(bits, "cuda")


def check_compiled(bits, device):
    """Same words, and same rows from them; widths that leave padding and not.

    A width is a compilation more: one that leaves none is for a mixture and 4 bits.
    """
    mixed = bits if isinstance(bits, tuple) else (bits,)
    for num_features in (21, 32) if 4 in mixed else (21,):
        x = uneven_rows(40, num_features).to(device)
        x[3] = 0.0
        groups = None
        if len(mixed) > 1:
            groups = RowGroups.of(torch.arange(40, device=device) % 3, 3)
        index = torch.tensor([39, 3, 3, 0, 17], device=device)
        plain, compiled = (
            FeatureStore.pack(x, mixed, packing(compile=choice), groups)
            for choice in ("false", "true")
        )
        for one, other in zip(plain.parts, compiled.parts, strict=True):
            assert torch.equal(one.words, other.words)
        assert torch.equal(plain.decode(), compiled.decode())
        assert torch.equal(plain.gather(index), compiled.gather(index))


def test_groups_are_a_permutation_in_order():
    group = torch.tensor([2, 0, 2, 1, 0])
    groups = RowGroups.of(group, 4)
    assert group[groups.order].tolist() == sorted(group.tolist())
    assert groups.order[groups.position.long()].tolist() == list(range(5))
    assert groups.sizes == (2, 1, 2, 0)


def test_full_rows_are_read_differentiably():
    x = normal(5, 3).requires_grad_()
    FeatureStore.full(x).gather(torch.tensor([1, 1, 4])).sum().backward()
    assert x.grad[:, 0].tolist() == [0, 2, 0, 0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RowPacking("row"), "range must be one of .* got 'row'"),
        (lambda: RowPacking("block", 0), "rows_per_block must be at least 1, got 0"),
        (lambda: RowPacking(metadata=torch.float16), "metadata must be one of"),
        (
            lambda: FeatureStore.pack(torch.ones(2, 2), (3,), RowPacking()),
            r"bits must be among .* got \{3\}",
        ),
        (
            lambda: FeatureStore.pack(torch.ones(2, 2), (2, 4), RowPacking()),
            "one width for each of 1 groups",
        ),
        (
            lambda: FeatureStore.pack(torch.ones(2, 0), (2,), RowPacking()),
            "at least one feature",
        ),
    ],
)
def test_wrong_recipes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
