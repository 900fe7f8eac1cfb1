"""Training of graph neural networks on compressed activations.

The names below are the public ones. Each is loaded when it is first asked for, so that
importing the package alone loads neither torch nor anything that takes time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # isort: off
    # Under its own name: a type checker takes that for "meant to be seen".
    from pipeline_src.compression.attachment import (
        compress as compress,
        decompress as decompress,
    )
    from pipeline_src.compression.config import (
        Codes as Codes,
        CompressionConfig as CompressionConfig,
        Keep as Keep,
        Offload as Offload,
        Part as Part,
        Recompute as Recompute,
    )
    from pipeline_src.compression.joint.backend import (
        compressed_backend as compressed_backend,
    )
    from pipeline_src.compression.memory.report import (
        MemoryReport as MemoryReport,
        memory_report as memory_report,
    )
    from pipeline_src.gnn.aggregation import (
        Aggregation as Aggregation,
        gcn_aggregation as gcn_aggregation,
        mean_aggregation as mean_aggregation,
    )
    from pipeline_src.gnn.feature_bits import (
        FeatureBits as FeatureBits,
    )
    from pipeline_src.gnn.models import (
        GraphNetwork as GraphNetwork,
    )
    from pipeline_src.gnn.shape import (
        NetworkShape as NetworkShape,
    )
    from pipeline_src.graphs.embedded import (
        digits_graph as digits_graph,
        synthetic_graph as synthetic_graph,
    )
    from pipeline_src.graphs.files import (
        read_graph as read_graph,
        write_graph as write_graph,
    )
    from pipeline_src.graphs.graph import (
        Adjacency as Adjacency,
        Graph as Graph,
        adjacency_from_edges as adjacency_from_edges,
    )
    from pipeline_src.laws.clipped_normal import (
        ClippedNormal as ClippedNormal,
        rounding_variance as rounding_variance,
    )
    from pipeline_src.laws.solver import (
        solve_boundaries as solve_boundaries,
    )
    from pipeline_src.loading.clusters import (
        ClusterLoader as ClusterLoader,
        partition_graph as partition_graph,
    )
    from pipeline_src.loading.inputs import (
        graph_data as graph_data,
    )
    from pipeline_src.loading.neighbors import (
        NeighborLoader as NeighborLoader,
    )
    from pipeline_src.loading.saint import (
        SaintNodeLoader as SaintNodeLoader,
        SaintWalkLoader as SaintWalkLoader,
    )
    from pipeline_src.quant.bitmask import (
        mask_gradient as mask_gradient,
        pack_mask as pack_mask,
    )
    from pipeline_src.quant.blockwise import (
        compress_blocks as compress_blocks,
        decompress_blocks as decompress_blocks,
    )
    from pipeline_src.quant.compressor import (
        CompressedActivation as CompressedActivation,
        Compressor as Compressor,
    )
    from pipeline_src.quant.feature_store import (
        FeatureStore as FeatureStore,
        RowPacking as RowPacking,
    )
    from pipeline_src.records.datasets import (
        read_dataset as read_dataset,
        write_dataset as write_dataset,
    )
    from pipeline_src.search.bits import (
        search_bits as search_bits,
    )
    from pipeline_src.training.job import (
        Job as Job,
    )
    from pipeline_src.training.runs import (
        train_run as train_run,
    )
    from pipeline_src.training.spec import (
        MethodSpec as MethodSpec,
        ModelSpec as ModelSpec,
        RunSpec as RunSpec,
        TrainingSpec as TrainingSpec,
    )
    # isort: on

_HOMES = {
    "compression.attachment": ("compress", "decompress"),
    "compression.config": (
        *("Codes", "CompressionConfig", "Keep", "Offload", "Part", "Recompute"),
    ),
    "compression.joint.backend": ("compressed_backend",),
    "compression.memory.report": ("MemoryReport", "memory_report"),
    "gnn.aggregation": ("Aggregation", "gcn_aggregation", "mean_aggregation"),
    "gnn.feature_bits": ("FeatureBits",),
    "gnn.models": ("GraphNetwork",),
    "gnn.shape": ("NetworkShape",),
    "graphs.embedded": ("digits_graph", "synthetic_graph"),
    "graphs.files": ("read_graph", "write_graph"),
    "graphs.graph": ("Adjacency", "Graph", "adjacency_from_edges"),
    "laws.clipped_normal": ("ClippedNormal", "rounding_variance"),
    "laws.solver": ("solve_boundaries",),
    "loading.clusters": ("ClusterLoader", "partition_graph"),
    "loading.inputs": ("graph_data",),
    "loading.neighbors": ("NeighborLoader",),
    "loading.saint": ("SaintNodeLoader", "SaintWalkLoader"),
    "quant.bitmask": ("mask_gradient", "pack_mask"),
    "quant.blockwise": ("compress_blocks", "decompress_blocks"),
    "quant.compressor": ("CompressedActivation", "Compressor"),
    "quant.feature_store": ("FeatureStore", "RowPacking"),
    "records.datasets": ("read_dataset", "write_dataset"),
    "search.bits": ("search_bits",),
    "training.job": ("Job",),
    "training.runs": ("train_run",),
    "training.spec": ("MethodSpec", "ModelSpec", "RunSpec", "TrainingSpec"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
