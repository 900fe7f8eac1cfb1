# The environment and the workflow, for a laptop or a node with NVIDIA's driver: the wheel
# of torch brings CUDA itself. docs/how-to/install.md says how to run it.
FROM python:3.11-slim-bookworm

# Kernels are compiled where that pays.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /pipeline

# Packages before sources: an edit of the library installs nothing again.
COPY environment.yml ./
RUN sed -n 's/^ *- \([a-z0-9-]*==.*\)/\1/p' environment.yml > /tmp/pins.txt \
    && pip install --no-cache-dir --requirement /tmp/pins.txt \
    && rm /tmp/pins.txt

RUN useradd --create-home --uid 1000 runner && chown runner /pipeline
COPY --chown=runner Snakefile LICENSE ./
COPY --chown=runner profiles ./profiles
COPY --chown=runner config ./config
COPY --chown=runner workflow ./workflow
COPY --chown=runner pipeline_src ./pipeline_src

# A home and caches in a place that any user may write to, as with --user.
ENV XDG_CACHE_HOME=/tmp/cache HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER runner
ENTRYPOINT ["snakemake"]
CMD ["--cores", "all"]
