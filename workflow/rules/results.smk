rule collect_runs:
    input:
        runs=collect("<results>/runs/{cell}.nc", cell=CELLS),
        measurements=collect("<results>/measurements/{plan}.nc", plan=MEASUREMENTS),
        sources=sources("collect_runs"),
    output:
        runs="<results>/runs.nc",
    log:
        "<logs>/collect_runs.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        labels=LABELS,  # here and not in a run: a new label trains nothing again
        asked=ASKED,
    script:
        "../scripts/collect_runs.py"


rule check_results:
    input:
        runs="<results>/runs.nc",
        sources=sources("check_results"),
    output:
        report="<results>/checks.txt",
    log:
        "<logs>/check_results.log",
    localrule: True
    conda:
        "../../environment.yml"
    script:
        "../scripts/check_results.py"


rule write_tables:
    input:
        runs="<results>/runs.nc",
        distributions=collect("<results>/distributions/{capture}.nc", capture=CAPTURES),
        boundaries="<results>/boundaries.nc",
        kernels="<results>/kernels.nc" if KERNELS else [],
        features="<results>/features.nc" if FEATURES else [],
        sources=sources("write_tables"),
    output:
        collect("<results>/tables/{table}", table=tables(COLLECTED_TABLES)),
    log:
        "<logs>/write_tables.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        counted=specs_of_byte_books,
        labels=LABELS,
    script:
        "../scripts/write_tables.py"


rule write_setting_tables:
    input:
        settings="<results>/activation_settings.nc",
        sources=sources("write_setting_tables"),
    output:
        collect("<results>/tables/{table}", table=tables(SETTING_TABLES)),
    log:
        "<logs>/write_setting_tables.log",
    localrule: True
    conda:
        "../../environment.yml"
    script:
        "../scripts/write_setting_tables.py"


rule plot_figure:
    input:
        runs="<results>/runs.nc",
        distributions=collect("<results>/distributions/{capture}.nc", capture=CAPTURES),
        boundaries="<results>/boundaries.nc",
        features="<results>/features.nc" if FEATURES else [],
        settings="<results>/activation_settings.nc" if SEARCHES else [],
        sources=sources("plot_figure"),
    output:
        report(
            collect("<results>/figures/{{figure}}.{format}", format=FORMATS),
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "<logs>/plot_figure/{figure}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        figure="{figure}",
    script:
        "../scripts/plot_figure.py"


rule write_report:
    input:
        tables=collect(
            "<results>/tables/{table}",
            table=tables(TABLES),
        ),
        figures=collect(
            "<results>/figures/{figure}.{format}", figure=FIGURES, format=FORMATS
        ),
        runs="<results>/runs.nc",
        features="<results>/features.nc" if FEATURES else [],
        settings="<results>/activation_settings.nc" if SEARCHES else [],
        checks="<results>/checks.txt",
        captions=CAPTIONS,
        sources=sources("write_report"),
    output:
        report="<results>/report.html",
    log:
        "<logs>/write_report.log",
    localrule: True
    conda:
        "../../environment.yml"
    script:
        "../scripts/write_report.py"
