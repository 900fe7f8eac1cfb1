rule solve_boundaries:
    input:
        sources=sources("solve_boundaries"),
    output:
        boundaries="<results>/boundaries.nc",
    log:
        "<logs>/solve_boundaries.log",
    conda:
        "../../environment.yml"
    script:
        "../scripts/solve_boundaries.py"


rule capture_activations:
    input:
        graph=graph_of_capture,
        boundaries=boundaries_of_capture,
        sources=sources("capture_activations"),
    output:
        capture="<results>/captures/{capture}.nc",
    log:
        "<logs>/capture_activations/{capture}.log",
    conda:
        "../../environment.yml"
    resources:
        gpu=GPUS,
    params:
        spec=spec_of_capture,
        epochs=epochs_of_capture,
    script:
        "../scripts/capture_activations.py"


rule fit_distributions:
    input:
        capture="<results>/captures/{capture}.nc",
        boundaries="<results>/boundaries.nc",
        sources=sources("fit_distributions"),
    output:
        distributions="<results>/distributions/{capture}.nc",
    log:
        "<logs>/fit_distributions/{capture}.log",
    conda:
        "../../environment.yml"
    script:
        "../scripts/fit_distributions.py"
