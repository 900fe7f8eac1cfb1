"""Versions of the packages that a result depends on."""

import importlib.metadata
from contextlib import suppress

VERSIONED_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "xarray",
    "netCDF4",
    "snakemake",
)


def package_versions() -> dict[str, str]:
    """Versions of those that are installed, in a fixed order."""
    versions = {}
    for package in VERSIONED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
