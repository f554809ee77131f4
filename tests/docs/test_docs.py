"""The documentation tells the truth: links lead somewhere, commands and their flags exist, Python compiles."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from kdstream import commands
from kdstream.commands import compare_methods
from support.paths import ROOT

RECIPE = ROOT / "egs" / "librispeech"
RESULTS_PAGES = sorted((RECIPE / "results").glob("*.md"))
GUIDES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(ROOT.glob("docs/*.md"))]
PAGES = [*GUIDES, RECIPE / "RESULTS.md", *RESULTS_PAGES, ROOT / "egs" / "aishell" / "README.md"]
SCRIPTS = [*ROOT.glob("egs/*/*.sh"), ROOT / "local" / "setup_env.sh", ROOT / "tests" / "gpu" / "run.sh"]
PROGRAMS = [*commands.COMMANDS.keys() - {"doctor"}, *SCRIPTS]

LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
FLAG = re.compile(r"--[a-z][\w-]*")
INTERVAL = re.compile(r"-?\d+(?:\.\d+)? ?(?:%|ms)?\s+\[-?[\d.]+,\s+-?[\d.]+\]")
SEPARATORS = ";|&()<>\n"
KEYWORDS = {"do", "then", "else", "if", "while", "{"}
# Words at the start of a line that are not ours to check.
OTHER_COMMANDS = {
    "apt-get", "awk", "cd", "cp", "done", "export", "ffmpeg", "for", "gzip", "hf", "lhotse", "mkdir", "pip", "pyright",
    "pytest", "ruff", "source", "srun", "}",
}  # fmt: skip
OTHER_FLAGS = {
    "--help",
    "--version",
    "--nproc-per-node",
    "--kill-on-bad-exit",
    "--requeue",
    "--max-restarts",
}  # not train.py's alone
# Flags whose value is a list of flags, and whose flags those are.
NESTED = {
    "--train-flags": "train",
    "--distill-flags": "train",
    "--teacher-model": "train",
    "--decode-flags": "decode",
    "--grid": "train",
    "--decode-grid": "decode",
}


def find_script(name: str) -> Path:
    """A script as a page names it: from the repository's root, or from the recipe."""
    for folder in (ROOT, RECIPE):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise AssertionError(f"{name}: no such script")


@functools.cache
def flags_of(program: Path | str) -> frozenset[str]:
    """The flags in the usage of a script or of a command of kdstream."""
    if isinstance(program, str):
        return printed_flags(lambda: commands.main([program, "--help"]), ["kdstream"])
    if program.suffix == ".py":
        return printed_flags(lambda: runpy.run_path(str(program), run_name="__main__"), [str(program), "--help"])
    text = program.read_text()
    if "read_flags " not in text:  # what the comment at its top names
        return frozenset(FLAG.findall("\n".join(line for line in text.splitlines() if line.startswith("#"))))
    shown = subprocess.run(["bash", str(program), "--help"], capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"^\s+(--[\w-]+)", shown.partition("Flags and defaults:")[2], re.MULTILINE))


def printed_flags(show_help: Callable[[], object], argv: list[str]) -> frozenset[str]:
    """The flags in the usage that argparse prints."""
    shown = io.StringIO()
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        show_help()
    usage = shown.getvalue().partition("usage:")[2].partition("\n\n")[0]
    assert usage, "no usage was printed"
    return frozenset(FLAG.findall(usage))


def commands_in(block: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script; variables and functions of the script are put in."""
    block = re.sub(r"(^|\s)#.*$", r"\1", block, flags=re.MULTILINE).replace("\\\n", " ")
    block = re.sub(r" >\S+", "", block)  # what output goes to
    lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "OUTPUT", block), posix=True, punctuation_chars=SEPARATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    variables: dict[str, str] = {}
    functions: dict[str, list[str]] = {}
    defined, words = "", []
    for token in [*lexer, "\n"]:
        if not set(token) <= set(SEPARATORS):
            words.append(token)
            continue
        if token.startswith("()"):
            defined = words.pop()
        while words and words[0] in KEYWORDS:
            words = words[1:]
        if words and all(re.match(r"\w+=", word) for word in words):
            variables.update(word.split("=", 1) for word in words)
        elif words:
            words = [part for word in words if not re.match(r"\w+=", word) for part in expand(word, variables)]
            words = functions.get(words[0], words[:1]) + words[1:]
            if defined:
                functions[defined], defined = words, ""
            yield words
        words = []


def expand(word: str, variables: dict[str, str]) -> list[str]:
    """A word with the values of known variables; one that is nothing but a variable becomes the value's words."""
    if whole := re.fullmatch(r"\$\{?(\w+)\}?", word):
        value = variables.get(whole[1], word)
        return [part for inner in shlex.split(value) for part in expand(inner, variables)] if value != word else [word]
    return [re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), word)]


def check_command(words: list[str]) -> None:
    """Raises AssertionError for a command that is not there, or that has no such flag."""
    program, *arguments = words
    if program.endswith("python") and arguments[0].endswith(".py"):
        check_flags(find_script(arguments[0]), arguments[1:])
    elif program == "bash":
        check_flags(find_script(arguments[0]), arguments[1:])
    elif program == "torchrun":
        place = next(index for index, word in enumerate(arguments) if word.endswith(".py"))
        check_flags(find_script(arguments[place]), arguments[place + 1 :])
    elif program == "kdstream":
        assert arguments[0] in commands.COMMANDS, f"kdstream {arguments[0]}: no such command"
        check_flags(arguments[0], arguments[1:])
    else:
        assert program.endswith("python") or program in OTHER_COMMANDS, f"{shlex.join(words)}: what is {program}?"


def check_flags(program: Path | str, arguments: list[str]) -> None:
    """Raises AssertionError for a flag that a script or a command of kdstream does not have."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in NESTED:
            nested = argument if "grid" not in before else "--" + argument.partition("=")[0]
            check_flags(NESTED[before], [word for word in nested.split() if word.startswith("--")])
        elif argument.startswith("--"):
            assert argument.partition("=")[0] in flags_of(program), f"{program}: has no flag {argument}"


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a text on `page` that lead nowhere."""
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or anchor and anchor not in anchors_of(file):
            broken.append(target)
    return broken


def blocks(page: Path, language: str) -> list[str]:
    return [code for of, code in FENCE.findall(page.read_text(encoding="utf8")) if of == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf8"))


def intervals_on(page: Path) -> set[str]:
    """The numbers of a page that have an interval behind them, as "18.4[16.6,20.3]"."""
    return {re.sub(r"[\s%ms]+", "", found) for found in INTERVAL.findall(page.read_text(encoding="utf8"))}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf8")) == []


def test_every_page_is_linked_from_readme_or_results() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in (ROOT / "README.md", RECIPE / "RESULTS.md")
        for target in LINK.findall(page.read_text(encoding="utf8"))
    }
    assert set(PAGES) - linked == {ROOT / "README.md"}


@pytest.mark.parametrize("page, lines", [(ROOT / "README.md", 160), (RECIPE / "RESULTS.md", 70)], ids=str)
def test_first_pages_are_short(page: Path, lines: int) -> None:
    assert page.read_text(encoding="utf8").count("\n") <= lines


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists_and_has_its_flags(page: Path) -> None:
    for block in blocks(page, "bash"):
        for words in commands_in(block):
            check_command(words)


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_python_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_commands_flags_and_files_that_the_text_names_exist(page: Path) -> None:
    for span in INLINE.findall(prose(page)):
        words = span.split()
        if words[0] == "kdstream" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in commands.COMMANDS, f"{span}: no such command"
        if re.fullmatch(r"kdstream/[\w/]+(\.py)?", span):
            assert (ROOT / span).exists(), f"{span}: no such file"
        known = OTHER_FLAGS.union(*map(flags_of, PROGRAMS))
        assert not set(FLAG.findall(span)) - known, f"{span}: no such flag"


@pytest.mark.parametrize("page", [*GUIDES, RECIPE / "RESULTS.md"], ids=name_of)
def test_every_number_with_an_interval_stands_on_a_page_of_results(page: Path) -> None:
    assert intervals_on(page) <= set().union(*map(intervals_on, RESULTS_PAGES))


def test_a_comparison_of_all_methods_takes_as_many_trainings_as_its_page_says() -> None:
    args = compare_methods.get_parser().parse_args(["--exp-root", "exp"])
    trainings = len(args.methods) * len(args.seeds) + 1  # the teacher's
    assert f"writes a table with intervals: {trainings} trainings" in (ROOT / "docs" / "methods.md").read_text()


@pytest.mark.parametrize(
    "command, complaint",
    [
        ("python train.py --num-epoch 3", "has no flag --num-epoch"),
        ("python trian.py", "no such script"),
        ("pyhton train.py", "what is pyhton?"),
        ("kdstream trian", "no such command"),
        ("bash run.sh --stages 2", "has no flag --stages"),
        ("(cd egs/librispeech && python decode.py --beams 4)", "has no flag --beams"),
        ("for x in a b; do\n  python decode.py --exp-dir $x --beams 4  # why\ndone", "has no flag --beams"),
        ('more="--beams 4"\npython decode.py $more', "has no flag --beams"),
        ('f() {\n  python decode.py "$@"\n}\nf --beams 4', "has no flag --beams"),
        ('bash run.sh --train-flags "--use-ctc 1 \\\n  --causl 0"', "has no flag --causl"),
        ("kdstream sweep --grid kd-scale=1,2", "has no flag --kd-scale"),
        ("python decode.py $(cat flags.txt) --beams 4", "has no flag --beams"),
    ],
)
def test_a_wrong_command_is_found(command: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        for words in commands_in(command):
            check_command(words)


def test_a_broken_link_is_found() -> None:
    readme = ROOT / "README.md"
    text = "[a](docs/none.md) [b](docs/install.md#none) [c](#two-commands) [d](docs/install.md) [e](https://x.org)"
    assert broken_links(readme, text) == ["docs/none.md", "docs/install.md#none"]


TEST_NAME = re.compile(r"(?:(tests/[\w/]+\.py))?::(test_\w+)")


def test_every_test_that_the_docs_name_is_there():
    """`tests/a/test_b.py::test_c, ::test_d`: the second name is in the file of the first."""
    named, path = 0, ""
    for page in PAGES:
        for match in TEST_NAME.finditer(page.read_text(encoding="utf8")):
            path = match[1] or path
            assert re.search(rf"^def {match[2]}\(", (ROOT / path).read_text(encoding="utf8"), re.MULTILINE), match[0]
            named += 1
    assert named > 50
