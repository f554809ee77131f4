"""Files are written whole or not at all; a full disk is one line that names the file."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from kdstream import files
from kdstream.commands import run
from kdstream.errors import UserError
from support.disk import full_disk

LIBRARY = Path(files.__file__).parent
# what writes in place on purpose: a file in a folder of its own that goes away, and a file of the kernel's
IN_PLACE = {"benchmarks/memory.py", "benchmarks/streaming.py"}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one\n")
    with files.replacing(path, suffix=".gz") as temporary:
        temporary.write_text("two ")
        assert temporary.name == ".a.txt.tmp.gz" and path.read_text() == "one\n"
    assert path.read_text() == "two " and os.listdir(path.parent) == ["a.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with full_disk(1000), pytest.raises(UserError) as refusal:
        files.write_text(path, "x" * 5000)
    assert str(refusal.value) == (
        f"{path}: cannot be written (File too large); free space on its disk, or name another place, "
        "then repeat the command"
    )
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_place_that_must_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a.txt: cannot be written \(.*\); name a"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_what_cannot_be_read_while_writing_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "a.txt"):
        (tmp_path / "nothing").read_text()


def test_a_full_disk_ends_any_command_with_one_line(tmp_path: Path, capsys) -> None:
    def command() -> None:
        with full_disk(1000), open(tmp_path / "a.wav", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 600)

    with pytest.raises(SystemExit) as end:
        run(command)
    assert str(end.value) == "error: a file: File too large; free space on its disk, or name another place"


def writes_in_place(node: ast.AST) -> bool:
    """Whether this is PATH.write_text(...), PATH.write_bytes(...) or open(PATH, "w"), where PATH is not `temporary`."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("write_text", "write_bytes"):
        path: ast.expr | None = node.func.value
    elif isinstance(node.func, ast.Name) and node.func.id == "open" and len(node.args) > 1:
        mode = node.args[1]
        path = node.args[0] if isinstance(mode, ast.Constant) and "w" in str(mode.value) else None
    else:
        path = None
    return path is not None and not (isinstance(path, ast.Name) and path.id == "temporary")


def test_nothing_else_writes_in_place() -> None:
    found = {
        str(path.relative_to(LIBRARY))
        for path in LIBRARY.rglob("*.py")
        if any(map(writes_in_place, ast.walk(ast.parse(path.read_text()))))
    }
    assert found == IN_PLACE
