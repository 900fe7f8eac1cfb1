"""torch.compile with codes: the backend.

    step = torch.compile(model, backend=compressed_backend(CompressionConfig(bits=2)))

Inductor compiles; the pass of rewriting.py runs between its splitting of the joint
graph of a step and its compilation of the two parts.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from pipeline_src.compression.config import Codes, CompressionConfig
from pipeline_src.compression.joint.rewriting import KeptTensor, Recipe, rewrite


class CompressedBackend:
    """A backend of torch.compile; `notes` tell what is kept, and how.

    Attributes:
        notes: one for each tensor that compiled graphs hand to backward.
    """

    def __init__(
        self, config: CompressionConfig, linear_operators: Sequence[str] = ()
    ) -> None:
        """See compressed_backend."""
        if config.choices:
            raise ValueError(
                "compressed_backend takes no choices for parts of a model: a compiled "
                f"graph has no modules; got {len(config.choices)}. Leave choices out, "
                "or call compress(model, config) and do not compile"
            )
        self.recipe = Recipe(
            linear=Codes(config.bits),
            product=Codes(max(config.bits, config.product_bits)),
            min_numel=config.min_numel,
            seed=config.seed,
            operators=tuple(linear_operators),
        )
        self.notes: list[KeptTensor] = []
        self._num_sites = 0

    def __call__(self, graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one graph."""
        # Loading the compiler takes seconds, and nothing else here needs it.
        from torch._functorch import config as functorch_config
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.custom_graph_pass import CustomPartitionerFn

        backend = self

        class Partitioner(CustomPartitionerFn):
            def __call__(
                self, gm: GraphModule, joint_inputs: Sequence[object], **kwargs: Any
            ) -> tuple[GraphModule, GraphModule]:
                forward, backward = min_cut_rematerialization_partition(
                    gm, joint_inputs, **kwargs
                )
                backend._rewrite(forward, backward, kwargs["num_fwd_outputs"])
                return forward, backward

            def uuid(self) -> Any:
                return None  # graphs hold numbers of this process: no cache

        patches = {"custom_partitioner_fn": Partitioner(), "fx_graph_cache": False}
        with functorch_config.patch(enable_autograd_cache=False):
            compiled: Any = compile_fx(graph, list(inputs), config_patches=patches)
        return compiled

    def _rewrite(
        self, forward: GraphModule, backward: GraphModule, num_outputs: int
    ) -> None:
        notes = rewrite(forward, backward, num_outputs, self.recipe, self._num_sites)
        self._num_sites += len(notes)
        self.notes += notes


def compressed_backend(
    config: CompressionConfig | None = None, linear_operators: Sequence[str] = ()
) -> CompressedBackend:
    """A backend for torch.compile under which backward reads codes of activations.

    For a model that is not compressed: torch.compile(model, fullgraph=True,
    dynamic=False, backend=compressed_backend(config)). Values of forward are those of
    the same compilation without codes, up to the order in which threads add to a node,
    which changes from run to run in either. Constant shapes only: what has others is
    kept as it is, and so is whatever a gradient is not known to be linear in.

    Args:
        config: bits of codes and of products, seed, and the smallest tensor to code.
        linear_operators: qualified names, such as "mine::aggregate", of operators of
            your own that are linear in their first argument.

    Raises:
        ValueError: if the configuration has choices for parts of a model.
    """
    return CompressedBackend(config or CompressionConfig(), linear_operators)
