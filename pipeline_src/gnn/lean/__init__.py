"""The whole network as one operation that keeps little and holds little.

EXACT compresses what each operation keeps. Looking at all of them at once, most of it
need not be kept at all:

1. Aggregation is linear, so grad W = xᵀ(Aᵀg): no copy of A x, and Aᵀg is needed anyway.
2. The first layer's input is resident data.
3. Dropout's mask is noise of (seed, row, feature), drawn again in backward.
4. The next convolution's input is rebuilt from what BatchNorm and ReLU keep.
5. BatchNorm and ReLU share one code per value that knows its side of ReLU's threshold
   (quant/rectified.py), so the mask costs nothing.
6. Backward reads codes run by run, adds to weight gradients, and overwrites gradients.

So a hidden layer keeps its codes, the two ends of each block, and two statistics of
each feature. Backward holds two tensors of the size of an activation at once: the
gradient and its transposed aggregation. Each idea can be switched off by its name in
IDEAS; what is then kept is compressed at the same width, projected if the recipe says
so, and the rest stays as it is.

The price is one more aggregation for the first layer, and gradients that carry the
noise of rounding: those of the last layer's weights through its input, those of the
first through BatchNorm and all layers behind it. From two bits on they are unbiased.

The same runs, and the same order of additions, whether kernels are compiled or not:
the choice changes no bit on a CPU. The number of threads may: matrix products add in an
order of their own for each.
"""
