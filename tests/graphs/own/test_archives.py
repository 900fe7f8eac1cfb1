"""An .npz file becomes arrays; objects are neither read nor executed."""

import numpy as np
import pytest
from made_up_own_graphs import sound_arrays

from pipeline_src.graphs.own.archives import read_archive


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_was_saved_is_read(tmp_path, save):
    arrays, path = sound_arrays(), tmp_path / "mine.npz"
    save(path, **arrays)
    read = read_archive(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_objects_are_refused_where_they_are_read_and_left_alone_elsewhere(tmp_path):
    path = tmp_path / "mine.npz"
    objects = np.array(["a", None], dtype=object)
    np.savez(path, x=np.eye(2), names=objects)
    assert read_archive(path)["names"].size == 0
    np.savez(path, x=objects)
    with pytest.raises(ValueError, match=r"arrays of numbers.*Object arrays"):
        read_archive(path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_refused_in_words(tmp_path, damage):
    path = tmp_path / "mine.npz"
    np.savez(path, **sound_arrays())
    whole = path.read_bytes()
    content = sound_arrays()["x"].tobytes()
    broken = {
        "empty": b"",
        "text": b"x,y\n1,2\n",
        "cut": whole[: len(whole) // 2],
        "flipped": whole.replace(content, bytes(reversed(content))),
    }
    assert broken[damage] != whole
    path.write_bytes(broken[damage])
    with pytest.raises(ValueError, match=r"expected a sound file of numpy.savez"):
        read_archive(path)


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "none.npz")
