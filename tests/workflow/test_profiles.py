"""A profile says where jobs run and on how much hardware, never what they compute.

Rules are read from the rule files as text: some exist only where a configuration asks
for them, and a profile must serve every configuration.
"""

import re
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

ROOT = Path(__file__).resolve().parents[2]
PROFILES = {
    path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("profiles/*/profile.yaml"))
}
SLURM = ("slurm", "slurm-gpu")
RULES = {
    match["name"]: match["body"]
    for path in sorted(ROOT.glob("workflow/rules/*.smk"))
    for match in re.finditer(
        r"^ *rule (?P<name>\w+):\n(?P<body>.*?)(?=^ *rule |\Z)",
        path.read_text(encoding="utf-8"),
        re.M | re.S,
    )
}
SUBMITTED = {name for name, body in RULES.items() if "localrule: True" not in body}
ON_A_GPU = {name for name, body in RULES.items() if "gpu=GPUS" in body}
# A rule that takes every core of the machine does so because it reads a clock.
MEASURING = {name for name, body in RULES.items() if "threads: 1024" in body}


def rules_named_in(profile):
    return {
        rule
        for key in ("set-resources", "set-threads")
        for rule in profile.get(key, {})
    }


def test_the_rule_files_are_read():
    assert {"train_run", "search_bits", "benchmark_kernels"} <= ON_A_GPU <= SUBMITTED
    assert {"benchmark_training", "benchmark_kernels"} == MEASURING
    assert "write_tables" in RULES.keys() - SUBMITTED


def test_the_four_profiles_are_there():
    assert set(PROFILES) == {"default", "gpu", *SLURM}


@pytest.mark.parametrize("name", PROFILES)
def test_every_key_is_an_option_of_snakemake(name):
    """So no key of the configuration: science would be refused."""
    options = get_argument_parser()._option_string_actions
    assert {f"--{key}" for key in PROFILES[name]} <= options.keys()
    assert not {"config", "configfile", "configfiles"} & PROFILES[name].keys()


@pytest.mark.parametrize("name", PROFILES)
def test_every_rule_that_is_named_exists(name):
    assert rules_named_in(PROFILES[name]) <= RULES.keys()


@pytest.mark.parametrize("name", PROFILES)
def test_no_profile_forgets_how_a_run_goes_on(name):
    """A key that is set in one profile alone would be missed in the others."""
    default = PROFILES["default"].items()
    assert default <= PROFILES[name].items()


@pytest.mark.parametrize("name", SLURM)
def test_a_submitted_rule_has_its_resources(name):
    """Those that read or train on a graph; defaults are for small ones."""
    others = {"prepare_graph", "read_own_graph", "train_distributed"}
    assert set(PROFILES[name]["set-resources"]) == ON_A_GPU | others


def test_a_gpu_is_asked_for_where_a_rule_may_use_one():
    resources = PROFILES["slurm-gpu"]["set-resources"]
    assert {rule for rule, entry in resources.items() if "gpu" in entry} == ON_A_GPU
    assert {entry["gpu"] for entry in resources.values() if "gpu" in entry} == {1}


@pytest.mark.parametrize("name", SLURM)
def test_a_clock_has_its_node_alone(name):
    resources = PROFILES[name]["set-resources"]
    exclusive = {
        rule
        for rule, entry in resources.items()
        if entry.get("slurm_extra") == "--exclusive"
    }
    assert exclusive == MEASURING
    # 1024 threads cannot be asked for: where Slurm scales nothing down, nothing starts.
    assert PROFILES[name]["set-threads"].keys() == MEASURING


@pytest.mark.parametrize("name", SLURM)
def test_ranks_are_tasks_of_one_core(name):
    """The rule asks for a task each; without `mpi`, Slurm would start it by itself."""
    entry = PROFILES[name]["set-resources"]["train_distributed"]
    assert (entry["mpi"], entry["cpus_per_task"]) == ("srun", 1)
    assert "tasks=number_of_ranks" in RULES["train_distributed"]


@pytest.mark.parametrize("name", ["default", "gpu"])
def test_no_local_profile_lets_a_clock_share_the_machine(name):
    assert not rules_named_in(PROFILES[name])


@pytest.mark.parametrize("name", SLURM)
def test_another_attempt_gets_more_memory(name):
    profile = PROFILES[name]
    requests = [profile["default-resources"], *profile["set-resources"].values()]
    for memory in (entry["mem_mb"] for entry in requests):
        assert re.fullmatch(r"\d+ \* attempt", memory)
    assert profile["retries"] >= 1


def test_slurm_profiles_differ_in_gpus_alone():
    cpu, gpu = ({**PROFILES[name]} for name in SLURM)
    without = {
        rule: {key: value for key, value in entry.items() if key != "gpu"}
        for rule, entry in gpu.pop("set-resources").items()
    }
    assert without == cpu.pop("set-resources")
    assert gpu == cpu


def test_places_on_a_gpu_are_limited_on_one_node_alone():
    """A limit in another profile would hold back all jobs of a cluster together."""
    limited = {name for name, profile in PROFILES.items() if "resources" in profile}
    assert limited == {"gpu"}
    assert PROFILES["gpu"]["resources"].keys() == {"gpu"}


def test_every_profile_is_described():
    text = (ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.M)) == set(PROFILES)
