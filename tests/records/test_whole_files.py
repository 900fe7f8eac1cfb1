"""Files written whole: the order of things, which no fault but a power loss shows."""

import os
from contextlib import suppress

from pipeline_src.records.whole_files import write_whole, written_whole


def test_a_reader_of_the_old_file_reads_all_of_it(tmp_path):
    """The name moves to the new file; the old one is never written into."""
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as old:
        write_whole(path, "new content")
        assert old.read() == "old"
    assert path.read_text() == "new content"


def test_content_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path, monkeypatch
):
    """After a power loss the name stands for a whole file, or not yet for the new."""
    path, done = tmp_path / "file", []
    flush, rename = os.fsync, os.replace

    def noted_flush(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    def noted_rename(source, target):
        done.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", noted_rename)
    write_whole(path, "content")
    temporary, *rest = done
    assert os.path.dirname(temporary) == str(tmp_path)
    assert temporary != str(path)
    assert rest == ["renamed", str(tmp_path)]


def test_an_error_of_the_writer_is_its_own_and_leaves_the_old_file(tmp_path):
    """Only a disk that takes no more is told as a disk at fault."""
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(ZeroDivisionError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
