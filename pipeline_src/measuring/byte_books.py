"""What training keeps for backward, counted from shapes alone: nothing is allocated.

One book per layout, tensor by tensor, each rounded up to the allocator's unit; N nodes,
D inputs and H outputs of a layer, and R = D / projection_ratio, rounded up:

    full    per convolution its input and, for GraphSAGE, the aggregated input, 4 N D
            bytes each; per hidden layer BatchNorm's input, ReLU's output and Dropout's
            output, 4 N H each, Dropout's mask, N H, and two statistics, 4 H each
    exact   the same tensors as codes (of N R values; of N H for BatchNorm) with two
            bfloat16 per block, two statistics, and one bit per value for ReLU and
            for Dropout
    lean    `lean_layer_tensors`

The first layer's input is resident data and never counted, unless a copy is kept. What
is shared is counted once: the input of a convolution is Dropout's output, or ReLU's
where nothing is dropped. The formulas are written down here and not taken from the
kernels, so that a measurement can contradict them; `tests/measuring/test_bytes.py`
compares the two to the byte.
"""

import math
from collections.abc import Iterator

from pipeline_src.graphs.sizes import GraphSizes
from pipeline_src.training.meters import allocated_bytes
from pipeline_src.training.spec import MethodSpec, ModelSpec

# Widths of codes for which lean keeps the mean of each side of each feature as well.
SIDE_MEAN_BITS = (1,)
BOOKED_POLICIES = ("full", "exact", "lean")


def saved_bytes(
    model: ModelSpec, method: MethodSpec, sizes: GraphSizes, loss: str
) -> int:
    """Bytes kept for backward by the published definition, as saved_memory measures.

    That is what the network keeps and what the loss keeps for it, less the loss itself:
    int64 targets, nll_loss's total weight and, where training uses the plain cross
    entropy, the log-softmax; the log cross entropy is counted on raw logits.

    Raises:
        ValueError: if there is no book of the method.
    """
    tensors = list(network_tensors(model, method, sizes.num_nodes, sizes.num_features))
    tensors += [8 * sizes.num_train, 4]
    if loss == "cross_entropy":
        tensors.append(4 * sizes.num_train * sizes.num_classes)
    return sum(map(allocated_bytes, tensors))


def saved_bytes_with_loss(
    model: ModelSpec, method: MethodSpec, sizes: GraphSizes, loss: str
) -> int:
    """All bytes alive once the loss has been formed, the training logits excepted.

    The log cross entropy keeps one value per training node more than the plain one:
    the argument of its logarithm.

    Raises:
        ValueError: if there is no book of the method.
    """
    tensors = list(network_tensors(model, method, sizes.num_nodes, sizes.num_features))
    logits = 4 * sizes.num_train * sizes.num_classes
    tensors += [8 * sizes.num_train, 4, logits, 4]  # the last: the loss
    if loss == "log_cross_entropy":
        tensors.append(4 * sizes.num_train)
    return sum(map(allocated_bytes, tensors))


def network_tensors(
    model: ModelSpec, method: MethodSpec, num_nodes: int, num_features: int
) -> Iterator[int]:
    """Bytes of each tensor that the network keeps, not yet rounded up.

    Raises:
        ValueError: if there is no book of the method.
    """
    if method.policy not in BOOKED_POLICIES or method.without:
        raise ValueError(
            f"a byte book needs a policy among {BOOKED_POLICIES} without ablation, got "
            f"{method.policy!r} (method {method.name}); measure it instead"
        )
    widths = [num_features] + [model.hidden] * (model.num_layers - 1)
    layer_bits = method.layer_bits or (method.bits,) * model.num_layers
    for i, width in enumerate(widths):
        is_hidden = i < model.num_layers - 1
        if method.policy == "full":
            yield from _full_layer(model, num_nodes, width, is_hidden, i == 0)
        elif method.policy == "exact":
            yield from _exact_layer(model, method, num_nodes, width, layer_bits, i)
        elif is_hidden:
            yield from lean_layer_tensors(model, method, layer_bits[i], num_nodes)


def lean_layer_tensors(
    model: ModelSpec, method: MethodSpec, bits: int, num_nodes: int
) -> Iterator[int]:
    """Bytes of each tensor that one hidden layer keeps in the lean layout.

    Codes of rows padded to whole blocks, two bfloat16 per block in one tensor (one bit
    has none), and two statistics per feature; without BatchNorm, the zeros and ones
    that stand for them and for its weight. Codes of one bit also keep the mean of each
    side of each feature.

    Raises:
        ValueError: if codes are not narrower than a byte or one.
    """
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"lean keeps codes of 1, 2, 4 or 8 bits, got {bits}")
    num_blocks = math.ceil(num_nodes / method.rows_per_block)
    yield num_blocks * method.rows_per_block * model.hidden * bits // 8
    if bits > 1:
        yield 2 * 2 * num_blocks
    yield from [4 * model.hidden] * (2 if model.batch_norm else 3)
    if bits in SIDE_MEAN_BITS:
        yield 2 * 4 * model.hidden


def _full_layer(
    model: ModelSpec, num_nodes: int, width: int, is_hidden: bool, is_first: bool
) -> Iterator[int]:
    """Of PyTorch's own operations; width is that of the input."""
    if model.layer == "sage":
        yield 4 * num_nodes * width  # the aggregated input
    if not is_first and model.dropout > 0:
        yield 4 * num_nodes * width  # Dropout's output, the input
    if not is_hidden:
        return
    values = num_nodes * model.hidden
    if model.batch_norm:
        yield 4 * values
        yield from [4 * model.hidden] * 2
    yield 4 * values  # ReLU's output
    if model.dropout > 0:
        yield values  # the mask, a byte each


def _exact_layer(
    model: ModelSpec,
    method: MethodSpec,
    num_nodes: int,
    width: int,
    layer_bits: tuple[int, ...],
    i: int,
) -> Iterator[int]:
    """Of the published layout; width is that of the input of convolution i, from 0.

    The input has the bits of the hidden layer it lies behind, the first of the first.
    """
    projected = math.ceil(width / method.projection_ratio)
    bits = layer_bits[max(i - 1, 0)]
    # At 32 bits the input itself is kept, and that of the first layer is resident.
    if not (i == 0 and bits == 32 and method.projection_ratio == 1):
        yield from _compressed(method, num_nodes, projected, bits)
    if model.layer == "sage":
        yield from _compressed(method, num_nodes, projected, bits)
    if i == model.num_layers - 1:
        return
    if model.batch_norm:
        yield from _compressed(method, num_nodes, model.hidden, layer_bits[i])
        yield from [4 * model.hidden] * 2
    num_masks = 2 if model.dropout > 0 else 1
    yield from [math.ceil(num_nodes * model.hidden / 8)] * num_masks


def _compressed(
    method: MethodSpec, num_nodes: int, width: int, bits: int
) -> Iterator[int]:
    """Codes, zero points and scales of one tensor, padded to blocks that fill bytes."""
    if bits == 32:
        yield 4 * num_nodes * width
        return
    rows = min(method.rows_per_block, max(1, method.max_block_size // width))
    size = rows * width
    codes_per_byte = 8 // bits
    together = codes_per_byte // math.gcd(codes_per_byte, size)
    num_blocks = math.ceil(num_nodes * width / (size * together)) * together
    yield num_blocks * size * bits // 8
    yield from [2 * num_blocks] * 2
