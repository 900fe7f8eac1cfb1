"""Every figure by its name, as rules and files call it."""

from collections.abc import Sequence

import xarray as xr
from plotnine import ggplot

from pipeline_src.report.figures.ablation import plot_ablation
from pipeline_src.report.figures.block_size import (
    plot_epoch_time_block_size,
    plot_memory_block_size,
)
from pipeline_src.report.figures.boundaries import plot_boundaries
from pipeline_src.report.figures.features import (
    plot_bit_drops,
    plot_bit_front,
    plot_bit_search,
)
from pipeline_src.report.figures.pareto import plot_pareto
from pipeline_src.report.figures.positions import (
    plot_position_histograms,
    plot_quantile_quantile,
)
from pipeline_src.report.figures.runs import plot_accuracy_memory, plot_training_curves
from pipeline_src.report.figures.scaling import plot_scaling
from pipeline_src.report.figures.settings import plot_setting_front

FIGURES = (
    "accuracy_memory",
    "memory_block_size",
    "epoch_time_block_size",
    "pareto",
    "scaling",
    "ablation",
    "position_histograms",
    "quantile_quantile",
    "boundaries",
    "training_curves",
    "bit_search",
    "bit_front",
    "bit_drops",
    "setting_front",
)


def plot_figure(
    name: str,
    runs: xr.Dataset,
    distributions: Sequence[xr.Dataset],
    boundaries: xr.Dataset,
    features: xr.Dataset | None = None,  # where bits of stored features are asked for
    settings: xr.Dataset | None = None,  # where activation settings are searched
) -> ggplot:
    """Return the figure of that name.

    Raises:
        ValueError: if there is no such figure.
    """
    match name:
        case "accuracy_memory":
            return plot_accuracy_memory(runs)
        case "memory_block_size":
            return plot_memory_block_size(runs)
        case "epoch_time_block_size":
            return plot_epoch_time_block_size(runs)
        case "pareto":
            return plot_pareto(runs)
        case "scaling":
            return plot_scaling(runs)
        case "ablation":
            return plot_ablation(runs)
        case "position_histograms":
            return plot_position_histograms(distributions)
        case "quantile_quantile":
            return plot_quantile_quantile(distributions)
        case "boundaries":
            return plot_boundaries(boundaries)
        case "training_curves":
            return plot_training_curves(runs)
        case "bit_search":
            return plot_bit_search(xr.Dataset() if features is None else features)
        case "bit_front":
            return plot_bit_front(xr.Dataset() if features is None else features)
        case "bit_drops":
            return plot_bit_drops(xr.Dataset() if features is None else features)
        case "setting_front":
            return plot_setting_front(xr.Dataset() if settings is None else settings)
    raise ValueError(f"figure must be one of {FIGURES}, got {name!r}")
