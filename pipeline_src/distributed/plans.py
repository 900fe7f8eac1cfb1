"""Which runs can be trained over ranks, known before any job starts."""

from pipeline_src.training.spec import RunSpec

POLICIES = ("full", "exact")


def refuse_run(spec: RunSpec) -> None:
    """Refuse a run that ranks, each with its part of the graph, cannot train.

    Raises:
        ValueError: if the method's policy is not one of POLICIES, the model is a class
            of its own, or the training takes batches.
    """
    if spec.method.policy not in POLICIES:
        raise ValueError(
            f"training over ranks keeps activations by policy {' or '.join(POLICIES)}, "
            f"got {spec.method.policy!r} of method {spec.method.name}; train it on one "
            "process, or choose another method"
        )
    if spec.model.is_class:
        raise ValueError(
            "training over ranks takes the networks of the configuration's layers, "
            f"got class {spec.model.layer} of model {spec.model.name}; train it on one "
            "process"
        )
    if spec.training.batches is not None:
        raise ValueError(
            f"training over ranks takes the full graph, got batches "
            f"{spec.training.batches.to_json()}; leave batches out, or train in "
            "batches on one process"
        )
