rule train_features:
    input:
        graph=graph_of_networks,
        sources=sources("train_features"),
    output:
        networks="<results>/features/networks/{networks}.nc",
    log:
        "<logs>/train_features/{networks}.log",
    conda:
        "../../environment.yml"
    threads: 1  # the number of threads changes the order of sums, hence the record
    resources:
        gpu=GPUS,
    params:
        training=training_of_networks,
    script:
        "../scripts/train_features.py"


rule search_bits:
    input:
        graph=graph_of_features,
        networks=selection_networks_of_features,
        sources=sources("search_bits"),
    output:
        selection="<results>/features/selections/{features}.nc",
    log:
        "<logs>/search_bits/{features}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        search=search_of_features,
    script:
        "../scripts/search_bits.py"


rule measure_bits:
    input:
        graph=graph_of_networks,
        networks="<results>/features/networks/{networks}.nc",
        selection=selection_of_networks,
        sources=sources("measure_bits"),
    output:
        measurement="<results>/features/measurements/{networks}.nc",
    log:
        "<logs>/measure_bits/{networks}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        measurement=measurement_of_networks,
    script:
        "../scripts/measure_bits.py"


if FEATURES:

    rule collect_bits:
        input:
            selections=collect(
                "<results>/features/selections/{features}.nc", features=FEATURES
            ),
            measurements=collect(
                "<results>/features/measurements/{networks}.nc",
                networks=MEASURED_NETWORKS,
            ),
            sources=sources("collect_bits"),
        output:
            features="<results>/features.nc",
        log:
            "<logs>/collect_bits.log",
        localrule: True
        conda:
            "../../environment.yml"
        script:
            "../scripts/collect_bits.py"
