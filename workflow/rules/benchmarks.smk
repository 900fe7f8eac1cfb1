if KERNELS:

    rule benchmark_kernels:
        input:
            sources=sources("benchmark_kernels"),
        output:
            kernels="<results>/kernels.nc",
        log:
            "<logs>/benchmark_kernels.log",
        conda:
            "../../environment.yml"
        threads: 1024  # scaled down to all cores: nothing else runs beside a clock
        resources:
            gpu=GPUS,
        params:
            rows=KERNELS["rows"],
            width=KERNELS["width"],
            bits=KERNELS["bits"],
            block_sizes=KERNELS["block_sizes"],
            warmup=KERNELS["warmup"],
            repeats=KERNELS["repeats"],
        script:
            "../scripts/benchmark_kernels.py"
