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
