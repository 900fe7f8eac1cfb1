rule start_search:
    input:
        graph=graph_of_search,
        boundaries=boundaries_of_search,
        sources=sources("start_search"),
    output:
        start="<results>/activations/starts/{search}.nc",
    log:
        "<logs>/start_search/{search}.log",
    conda:
        "../../environment.yml"
    threads: 1  # the number of threads changes the order of sums, hence the record
    resources:
        gpu=GPUS,
    params:
        search=params_of_search,
    script:
        "../scripts/start_search.py"


rule propose_round:
    input:
        start="<results>/activations/starts/{search}.nc",
        previous=previous_round,
        evaluations=evaluations_of_previous_round,
        sources=sources("propose_round"),
    output:
        proposals="<results>/activations/rounds/{search}-{round}.nc",
    log:
        "<logs>/propose_round/{search}-{round}.log",
    localrule: True  # seconds, of which a queue would make minutes, round by round
    conda:
        "../../environment.yml"
    script:
        "../scripts/propose_round.py"


rule evaluate_settings:
    input:
        graph=graph_of_search,
        boundaries=boundaries_of_search,
        proposals="<results>/activations/rounds/{search}-{round}.nc",
        sources=sources("evaluate_settings"),
    output:
        evaluations="<results>/activations/evaluations/{search}-{round}-{part}.nc",
    log:
        "<logs>/evaluate_settings/{search}-{round}-{part}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        search=params_of_search,
        part="{part}",
        evaluations_per_job=evaluations_per_job_of_search,
    script:
        "../scripts/evaluate_settings.py"


rule choose_settings:
    input:
        start="<results>/activations/starts/{search}.nc",
        last=last_round,
        evaluations=evaluations_of_last_round,
        sources=sources("choose_settings"),
    output:
        selection="<results>/activations/selections/{search}.nc",
    log:
        "<logs>/choose_settings/{search}.log",
    localrule: True
    conda:
        "../../environment.yml"
    script:
        "../scripts/choose_settings.py"


rule measure_settings:
    input:
        graph=graph_of_fresh_seeds,
        boundaries=boundaries_of_fresh_seeds,
        selection=selection_of_fresh_seeds,
        sources=sources("measure_settings"),
    output:
        measurement="<results>/activations/measurements/{fresh}.nc",
    log:
        "<logs>/measure_settings/{fresh}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        block=block_of_fresh_seeds,
        methods=methods_of_fresh_seeds,
    script:
        "../scripts/measure_settings.py"


if SEARCHES:

    rule collect_settings:
        input:
            selections=collect(
                "<results>/activations/selections/{search}.nc", search=SEARCHES
            ),
            measurements=collect(
                "<results>/activations/measurements/{fresh}.nc", fresh=FRESH_SEEDS
            ),
            sources=sources("collect_settings"),
        output:
            settings="<results>/activation_settings.nc",
        log:
            "<logs>/collect_settings.log",
        localrule: True
        conda:
            "../../environment.yml"
        script:
            "../scripts/collect_settings.py"
