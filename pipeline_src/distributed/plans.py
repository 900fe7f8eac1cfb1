"""Which runs can be trained over ranks, known before any job starts."""

from pipeline_src.training.spec import MethodSpec

POLICIES = ("full", "exact")


def refuse_method(method: MethodSpec) -> None:
    """Refuse a method that ranks cannot train by.

    Raises:
        ValueError: if its policy is not one of POLICIES.
    """
    if method.policy not in POLICIES:
        raise ValueError(
            f"training over ranks keeps activations by policy {' or '.join(POLICIES)}, "
            f"got {method.policy!r} of method {method.name}; train it on one process, "
            "or choose another method"
        )
