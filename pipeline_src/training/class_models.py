"""Whether a network that is named by its class can be trained.

Building it and one step on a made-up graph take seconds; without them a wrong argument
would be told after a download, or after others have trained for hours.
"""

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.records.devices import resolve_device
from pipeline_src.training.spec import RunSpec
from pipeline_src.training.trainer import Trainer

NUM_NODES, NUM_EDGES, NUM_FEATURES = 256, 1024, 16


def check_class_model(spec: RunSpec) -> int:
    """Build the network, take a step, evaluate it; returns its number of parameters.

    Raises:
        ValueError: naming the model and what went wrong.
    """
    graph = synthetic_graph(NUM_NODES, NUM_EDGES, NUM_FEATURES)
    try:
        trainer = Trainer(spec, graph.to(resolve_device(spec.device)), None, seed=0)
        trainer.step(0)
        trainer.evaluate()
    # A network of the user's own fails in ways of its own.
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(
            f"models.{spec.model.name} cannot take a step on a made-up graph of "
            f"{NUM_FEATURES} features and {graph.num_classes} classes: {kind}{error}"
        ) from error
    return sum(parameter.numel() for parameter in trainer.model.parameters())
