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
