"""Without torch and Triton of the pinned versions there is nothing to import here."""

from tests.gpu_proof.versions import obstacle

collect_ignore = (
    [
        f"{name}.py"
        for name in (
            "generation",
            "machine_code",
            "planted",
            "pretended_cuda",
            "prove",
            "recording",
            "steps",
            "table",
        )
    ]
    if obstacle()
    else []
)
