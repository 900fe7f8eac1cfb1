from pipeline_src.graphs.raw_sources import RAW_SOURCES

# Where a graph's raw files lie; embedded and synthetic graphs have none.
RAW_FOLDERS = {
    source.graph: f"resources/raw/{name}" for name, source in RAW_SOURCES.items()
}


rule fetch_graph:
    input:
        # Ancient: no edit of the library repeats a finished download.
        sources=ancient(sources("fetch_graph")),
    output:
        raw=directory("resources/raw/{source}"),
    log:
        "<logs>/fetch_graph/{source}.log",
    wildcard_constraints:
        source=one_of(RAW_SOURCES),
    localrule: True  # compute nodes of a cluster often have no internet
    conda:
        "../../environment.yml"
    script:
        "../scripts/fetch_graph.py"


rule prepare_graph:
    input:
        sources=sources("prepare_graph"),
        raw=lookup(dpath="{graph}", within=RAW_FOLDERS, default=[]),
    output:
        graph="resources/graphs/{graph}.npz",
    log:
        "<logs>/prepare_graph/{graph}.log",
    conda:
        "../../environment.yml"
    script:
        "../scripts/prepare_graph.py"


rule read_own_graph:
    input:
        sources=sources("read_own_graph"),
        files=files_of_own_graph,
    output:
        # Below the run: another configuration may mean another file by the same name.
        graph="<results>/graphs/{graph}.npz",
    log:
        "<logs>/read_own_graph/{graph}.log",
    wildcard_constraints:
        graph=one_of(CONFIG["graphs"]),
    priority: 1  # a fault of the file is told before anything trains
    conda:
        "../../environment.yml"
    params:
        given=given_of_own_graph,
        content=content_of_own_graph,
    script:
        "../scripts/read_own_graph.py"
