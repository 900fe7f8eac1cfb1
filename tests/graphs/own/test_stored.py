"""A .pt file becomes arrays, nothing that it names runs, and what is odd is named."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from made_up_own_graphs import as_tensors, sound_arrays
from torch_geometric.data import Data, HeteroData

from pipeline_src.graphs.own.stored import read_stored


def saved(content, folder, **options):
    path = folder / "mine.pt"
    torch.save(content, path, **options)
    return path


def in_memory(data):
    """What InMemoryDataset.save writes for a single graph."""
    return data.to_dict(), None, Data


@pytest.mark.parametrize(
    "wrap",
    [lambda data: data, Data.to_dict, in_memory, lambda data: (data, None)],
    ids=["data", "dictionary", "in-memory", "in-memory-of-old"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_way_to_save_a_graph_gives_its_arrays(tmp_path, wrap, zipped):
    arrays = sound_arrays()
    data = wrap(Data(**as_tensors(arrays)))
    path = saved(data, tmp_path, _use_new_zipfile_serialization=zipped)
    read = read_stored(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_a_view_and_a_parameter_are_read_as_they_look(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    x = torch.nn.Parameter(whole)
    path = saved(Data(x=x, edge_index=whole.long().t()[:2]), tmp_path)
    read = read_stored(path)
    np.testing.assert_array_equal(read["x"], whole.numpy())
    np.testing.assert_array_equal(read["edge_index"], whole.long().t()[:2].numpy())


def test_bfloat16_keeps_its_values(tmp_path):
    x = torch.linspace(-3, 3, 8).bfloat16().reshape(4, 2)
    read = read_stored(saved({"x": x}, tmp_path))["x"]
    np.testing.assert_array_equal(read, x.float().numpy(), strict=True)


class Marks:
    """Executed, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Evaluates(Marks):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.path!r})",)


@pytest.mark.parametrize("kind", [Marks, Evaluates])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": x}, lambda x: Data(x=x)])
@pytest.mark.parametrize("write", [torch.save, "pickle"], ids=["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path, kind, wrap, write):
    marker, path = tmp_path / "executed", tmp_path / "mine.pt"
    content = wrap(kind(marker))
    if write == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(content, path)
        torch.load(path, weights_only=False)
    assert marker.exists(), "executed by those who trust it"
    marker.rmdir()
    with pytest.raises(
        ValueError, match=r"of torch.save|nothing of it was executed"
    ) as told:
        read_stored(path)
    assert not marker.exists()
    assert "add_safe_globals" not in str(told.value), "that advice would execute it"


def test_a_class_that_is_not_read_is_named_with_the_way_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"torch_geometric\.data\..*write plain tensors instead"
    ):
        read_stored(saved(HeteroData(), tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "expected a Data or a dictionary.*got "),
        ([{"x": torch.zeros(3)}], "expected a Data or a dictionary.*got "),
        ({1: torch.zeros(3)}, "expected a Data or a dictionary.*got "),
        (({}, {"x": [0, 1]}, Data), "got a file of several"),
        ({"x": [1.0, 2.0]}, r"x: expected a tensor, got <class 'list'>"),
        ({"x": torch.eye(3).to_sparse()}, r"x: expected a dense tensor.*to_dense"),
        (
            {"x": torch.zeros(1).expand(1 << 40)},
            r"x: expected at most 68719476736 bytes, got the shape \(1099511627776,\)",
        ),
    ],
    ids=["tensor", "list", "keys", "several", "values", "sparse", "huge"],
)
def test_other_contents_are_refused_in_words(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_stored(saved(content, tmp_path))


def test_what_is_not_read_may_be_anything_plain(tmp_path):
    content = {"x": torch.zeros(3, 1), "pos": None, "title": "mine", "names": ["a"]}
    assert read_stored(saved(content, tmp_path)).keys() == {"x", "title", "names"}


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "torn", "flipped"])
def test_a_damaged_file_is_refused_in_words(tmp_path, damage):
    path = saved(as_tensors(sound_arrays()), tmp_path)
    whole = path.read_bytes()
    features = sound_arrays()["x"].tobytes()
    assert features in whole
    broken = {
        "empty": b"",
        "text": b"x,y\n1,2\n",
        "cut": whole[: len(whole) // 2],
        "flipped": whole.replace(features, features[::-1]),
        "torn": whole.replace(b"edge_index", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80."),
    }
    path.write_bytes(broken[damage])
    with pytest.raises(ValueError, match=r"torch.save|nothing of it was executed"):
        read_stored(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_torn_anywhere_is_refused_in_words_or_read(tmp_path, zipped):
    """Whatever the pickle inside says: a ValueError, and no other exception."""
    random = np.random.default_rng(0)
    content = Data(**as_tensors(sound_arrays()))
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        (program,) = (name for name in members if name.endswith("/data.pkl"))
    else:
        members, program = {"": path.read_bytes()}, ""
    whole = members[program]
    refused = 0
    for _ in range(200):
        torn = bytearray(whole)
        torn[random.integers(len(torn))] = random.integers(256)
        path.write_bytes(torn)
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                for name, stored in members.items():
                    archive.writestr(name, torn if name == program else stored)
        try:
            read_stored(path)
        except ValueError:
            refused += 1
    assert refused > 50, "most of a program matters"


@pytest.mark.parametrize("second", ["text", ("storage",)])
def test_what_pytorch_stumbles_over_is_a_damaged_file(tmp_path, second, monkeypatch):
    path = saved(as_tensors(sound_arrays()), tmp_path)

    def stumble(*_, **__):
        return second.dtype

    monkeypatch.setattr(torch, "load", stumble)
    with pytest.raises(ValueError, match=r"expected a sound file of torch.save, got"):
        read_stored(path)


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_stored(tmp_path / "none.pt")


class Harmless:
    """Another library may admit such a class for its own files."""


def test_what_others_admit_is_refused_here_and_stays_admitted_there(tmp_path):
    path = saved({"x": Harmless()}, tmp_path)
    with torch.serialization.safe_globals([Harmless]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(ValueError, match="Harmless"):
            read_stored(path)
        assert set(torch.serialization.get_safe_globals()) == before
        torch.load(path, weights_only=True)
