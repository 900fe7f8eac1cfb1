"""Cells, their names, and the text that decides whether a run is repeated."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_src.training.spec import (
    MethodSpec,
    ModelSpec,
    RunSpec,
    TrainingSpec,
    resume_key,
    source_digest,
)

MODEL = ModelSpec("sage-2x64", "sage", 2, 64, 0.5, True)
METHOD = MethodSpec("block64", "G/R = 64", "exact", 2, 8, 64, "even")
TRAINING = TrainingSpec(60, 0.01, 0.0, 0.5, "cross_entropy")
SPEC = RunSpec("digits", MODEL, METHOD, TRAINING, (0, 1, 2))

names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True)
specs = st.builds(
    RunSpec,
    graph=st.from_regex(r"[a-z0-9_]+", fullmatch=True),
    model=st.builds(
        ModelSpec,
        name=names,
        layer=st.sampled_from(["sage", "gcn"]),
        num_layers=st.integers(1, 9),
        hidden=st.integers(1, 999),
        dropout=st.floats(0, 0.99),
        batch_norm=st.booleans(),
    ),
    method=st.builds(
        MethodSpec,
        name=names,
        label=st.text(),
        policy=st.sampled_from(["full", "exact"]),
        bits=st.sampled_from([1, 2, 4, 8, 32]),
        projection_ratio=st.integers(1, 64),
        rows_per_block=st.integers(1, 64),
        boundaries=st.sampled_from(["even", "clipped_normal"]),
        max_block_size=st.integers(1, 64).map(lambda n: 32 * n),
    ),
    training=st.builds(
        TrainingSpec,
        epochs=st.integers(1, 999),
        learning_rate=st.floats(1e-9, 1),
        weight_decay=st.floats(0, 1),
        gradient_clip=st.none() | st.floats(1e-9, 9),
        loss=st.sampled_from(["cross_entropy", "log_cross_entropy"]),
    ),
    seeds=st.builds(
        lambda first, count: tuple(range(first, first + count)),
        st.integers(0, 99),
        st.integers(1, 20),
    ),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    compile=st.sampled_from(["auto", "true", "false"]),
)


@given(specs)
def test_json_round_trip(spec):
    """Also through text, which is how a record's attribute keeps it."""
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(specs)
def test_params_round_trip(spec):
    text = spec.to_params()
    again = RunSpec.from_params(text, device=spec.device, compile=spec.compile)
    unlabelled = dataclasses.replace(spec.method, label=spec.method.name)
    assert again == dataclasses.replace(spec, method=unlabelled)
    assert again.to_params() == text


def test_machine_and_label_are_no_part_of_params():
    label = dataclasses.replace(METHOD, label="another")
    other = dataclasses.replace(SPEC, device="cuda", compile="true", method=label)
    assert other.to_params() == SPEC.to_params()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("graph", "cora"),
        ("model", dataclasses.replace(MODEL, hidden=65)),
        ("method", dataclasses.replace(METHOD, bits=4)),
        ("training", dataclasses.replace(TRAINING, epochs=61)),
        ("seeds", (0, 1)),
    ],
)
def test_all_else_is_part_of_params(field, value):
    other = dataclasses.replace(SPEC, **{field: value})
    assert other.to_params() != SPEC.to_params()


def test_cell_names_first_and_last_seed():
    assert SPEC.cell == "digits-sage-2x64-block64-s0to2"
    assert dataclasses.replace(SPEC, seeds=(7,)).cell.endswith("-s7to7")


@pytest.mark.parametrize("seeds", [(0, 2), (1, 0), (-1, 0), (3, 3)])
def test_seeds_must_be_neighbours(seeds):
    with pytest.raises(ValueError, match=r"seeds must be neighbours .* got \("):
        dataclasses.replace(SPEC, seeds=seeds)


def test_a_run_needs_a_seed():
    with pytest.raises(ValueError, match="at least one seed, got none"):
        dataclasses.replace(SPEC, seeds=())


def test_only_clipped_normal_needs_the_solved_boundaries():
    assert not METHOD.needs_boundaries
    assert dataclasses.replace(METHOD, boundaries="clipped_normal").needs_boundaries


def test_digest_follows_contents_and_names_but_not_folders(tmp_path):
    def write(folder, name, text):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / name
        path.write_text(text)
        return path

    one = [write("a", "x.py", "1"), write("a", "y.py", "2")]
    moved = [write("b", "y.py", "2"), write("b", "x.py", "1")]
    assert source_digest(one) == source_digest(moved)
    assert source_digest(one) != source_digest(one[:1])
    # Contents that change places, and a character that moves to the next file.
    assert source_digest(one) != source_digest(
        [write("c", "x.py", "2"), write("c", "y.py", "1")]
    )
    assert source_digest(one) != source_digest(
        [write("d", "x.py", "12"), write("d", "y.py", "")]
    )
    assert len(source_digest([])) == 64


def test_resume_key_changes_with_the_run_and_with_its_inputs(tmp_path):
    graph = tmp_path / "graph.npz"
    graph.write_text("1")
    key = resume_key(SPEC, [graph])
    assert key == resume_key(dataclasses.replace(SPEC, device="cuda"), [graph])
    assert key == resume_key(SPEC, [graph, None, ""]), "inputs that are not needed"
    assert key != resume_key(dataclasses.replace(SPEC, seeds=(0,)), [graph])
    graph.write_text("2")
    assert key != resume_key(SPEC, [graph])
