"""What each job is given: the files and parameters that its wildcards stand for."""

from pipeline_src.graphs.own.given import GivenGraph, digest_of_files, given_files


def files_of_own_graph(wildcards):
    return given_files(GivenGraph.from_params(CONFIG["graphs"][wildcards.graph]))


def content_of_own_graph(wildcards):
    """By content: a file put in its place may be the older of the two."""
    return digest_of_files(files_of_own_graph(wildcards))


def given_of_own_graph(wildcards):
    return GivenGraph.from_params(CONFIG["graphs"][wildcards.graph]).to_params()


def sources_of_class_model(wildcards):
    return sources_with_class("check_model", CLASS_MODELS[wildcards.class_model].model)


def spec_of_class_model(wildcards):
    return CLASS_MODELS[wildcards.class_model].to_params()


def sources_of_run(wildcards):
    return sources_with_class("train_run", CELLS[wildcards.cell].model)


def checked_model_of_run(wildcards):
    return checked_model(CELLS[wildcards.cell].model)


def graph_of_run(wildcards):
    return graph_file(CELLS[wildcards.cell].graph)


def boundaries_of_run(wildcards):
    return boundaries_file(CELLS[wildcards.cell])


def spec_of_run(wildcards):
    return CELLS[wildcards.cell].to_params()


def spec_of_ranks(wildcards):
    refuse_run(CELLS[wildcards.cell])
    return spec_of_run(wildcards)


def number_of_ranks(wildcards):
    return int(wildcards.ranks)


def sources_of_measurement(wildcards):
    model = MEASUREMENTS[wildcards.plan].specs[0].model
    return sources_with_class("benchmark_training", model)


def checked_model_of_measurement(wildcards):
    return checked_model(MEASUREMENTS[wildcards.plan].specs[0].model)


def graph_of_measurement(wildcards):
    return graph_file(MEASUREMENTS[wildcards.plan].specs[0].graph)


def boundaries_of_measurement(wildcards):
    return boundaries_file(*MEASUREMENTS[wildcards.plan].specs)


def specs_of_measurement(wildcards):
    return [spec.to_params() for spec in MEASUREMENTS[wildcards.plan].specs]


def timed_methods_of_measurement(wildcards):
    return list(MEASUREMENTS[wildcards.plan].timed)


def warmup_of_measurement(wildcards):
    return MEASUREMENTS[wildcards.plan].warmup


def repeats_of_measurement(wildcards):
    return MEASUREMENTS[wildcards.plan].repeats


def specs_of_byte_books(wildcards):
    return [spec.to_params() for spec in BYTE_BOOKS]


def gradient_draws_of_measurement(wildcards):
    return MEASUREMENTS[wildcards.plan].gradient_draws


def graph_of_capture(wildcards):
    return graph_file(CAPTURES[wildcards.capture].spec.graph)


def boundaries_of_capture(wildcards):
    return boundaries_file(CAPTURES[wildcards.capture].spec)


def spec_of_capture(wildcards):
    return CAPTURES[wildcards.capture].spec.to_params()


def epochs_of_capture(wildcards):
    return list(CAPTURES[wildcards.capture].epochs)


def graph_of_networks(wildcards):
    return graph_file(NETWORKS[wildcards.networks][0].graph)


def training_of_networks(wildcards):
    return NETWORKS[wildcards.networks][0].to_params()


def selection_of_networks(wildcards):
    plan = MEASURED_NETWORKS[wildcards.networks][1]
    return f"<results>/features/selections/{plan.name}.nc"


def measurement_of_networks(wildcards):
    return MEASURED_NETWORKS[wildcards.networks][1].measurement.to_params()


def graph_of_features(wildcards):
    return graph_file(FEATURES[wildcards.features].selection.graph)


def selection_networks_of_features(wildcards):
    networks = FEATURES[wildcards.features].selection
    return f"<results>/features/networks/{networks.name}.nc"


def search_of_features(wildcards):
    return FEATURES[wildcards.features].search.to_params()


def graph_of_search(wildcards):
    return graph_file(SEARCHES[wildcards.search].search.run.graph)


def boundaries_of_search(wildcards):
    needed = SEARCHES[wildcards.search].search.needs_boundaries
    return "<results>/boundaries.nc" if needed else []


def params_of_search(wildcards):
    return SEARCHES[wildcards.search].search.to_params()


def evaluations_per_job_of_search(wildcards):
    return SEARCHES[wildcards.search].evaluations_per_job


def round_file(search, number):
    return f"<results>/activations/rounds/{search}-{number}.nc"


def evaluation_files(search, number):
    """All parts of a round's evaluations."""
    folder = "<results>/activations/evaluations"
    parts = range(SEARCHES[search].num_parts)
    return [f"{folder}/{search}-{number}-{part}.nc" for part in parts]


def previous_round(wildcards):
    number = int(wildcards.round) - 1
    return round_file(wildcards.search, number) if number else []


def evaluations_of_previous_round(wildcards):
    number = int(wildcards.round) - 1
    return evaluation_files(wildcards.search, number) if number else []


def last_round(wildcards):
    return round_file(wildcards.search, SEARCHES[wildcards.search].rounds)


def evaluations_of_last_round(wildcards):
    return evaluation_files(wildcards.search, SEARCHES[wildcards.search].rounds)


def graph_of_fresh_seeds(wildcards):
    return graph_file(FRESH_SEEDS[wildcards.fresh][0].graph)


def boundaries_of_fresh_seeds(wildcards):
    needed = FRESH_SEEDS[wildcards.fresh][1].needs_boundaries
    return "<results>/boundaries.nc" if needed else []


def selection_of_fresh_seeds(wildcards):
    plan = FRESH_SEEDS[wildcards.fresh][1]
    return f"<results>/activations/selections/{plan.name}.nc"


def block_of_fresh_seeds(wildcards):
    return FRESH_SEEDS[wildcards.fresh][0].to_params()


def methods_of_fresh_seeds(wildcards):
    return FRESH_SEEDS[wildcards.fresh][1].methods_to_params()
