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


rule check_model:
    input:
        sources=sources_of_class_model,
    output:
        checked="<results>/models/{class_model}.txt",
    log:
        "<logs>/check_model/{class_model}.log",
    priority: 1  # a fault of the class is told before anything trains
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        spec=spec_of_class_model,
    script:
        "../scripts/check_model.py"


rule train_run:
    input:
        graph=graph_of_run,
        boundaries=boundaries_of_run,
        model=checked_model_of_run,
        sources=sources_of_run,
    output:
        record="<results>/runs/{cell}.nc",
    log:
        "<logs>/train_run/{cell}.log",
    conda:
        "../../environment.yml"
    threads: 1  # the number of threads changes the order of sums, hence the record
    resources:
        gpu=GPUS,
    params:
        spec=spec_of_run,
    script:
        "../scripts/train_run.py"


rule benchmark_training:
    input:
        graph=graph_of_measurement,
        boundaries=boundaries_of_measurement,
        model=checked_model_of_measurement,
        sources=sources_of_measurement,
    output:
        measurement="<results>/measurements/{plan}.nc",
    log:
        "<logs>/benchmark_training/{plan}.log",
    conda:
        "../../environment.yml"
    threads: 1024  # scaled down to all cores: nothing else runs beside a clock
    resources:
        gpu=GPUS,
    params:
        specs=specs_of_measurement,
        timed=timed_methods_of_measurement,
        warmup=warmup_of_measurement,
        repeats=repeats_of_measurement,
        gradient_draws=gradient_draws_of_measurement,
    script:
        "../scripts/benchmark_training.py"


# A run of the configuration, trained by several processes. No configuration asks for it:
# it is made when its record is named, as docs/how-to/cluster.md shows.
rule train_distributed:
    input:
        graph=graph_of_run,
        sources=sources("train_distributed"),
    output:
        record="<results>/distributed/{cell}-{ranks}ranks-{wire}bits.json",
    log:
        "<logs>/train_distributed/{cell}-{ranks}ranks-{wire}bits.log",
    wildcard_constraints:
        ranks="[2-9]|[1-9][0-9]+",
        wire="1|2|4|8|32",
    conda:
        "../../environment.yml"
    threads: number_of_ranks  # of one thread each
    resources:
        tasks=number_of_ranks,
    params:
        spec=spec_of_ranks,
        partition="range",
        every=10,  # epochs between two checkpoints
    script:
        "../scripts/train_distributed.py"
