"""README, docs/ and the other pages: links lead somewhere, commands are those of the command line, examples run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rdn_fast.flags import make_parser, with_dashes

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [
    *READMES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "profiling/LOG.md")),
    *sorted((ROOT / "rdn_fast" / "weights").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "tests").glob("*/README.md")),
]
COMMAND = re.compile(
    r"^ {4,}((?:rdn-fast [a-z]|make [a-z]|bash |python -m |(?:PYTHONPATH=\S+ )?\.venv/bin/python -m ).*)$", re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", EXAMPLE.sub("", text(page)), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings."""
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def code_blocks(page: Path) -> list[str]:
    """The indented blocks, without the comments in them."""
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text(page), re.MULTILINE)
    return [re.sub(r" +# .*", "", block) for block in blocks]


def commands(page: Path) -> list[str]:
    joined = text(page).replace("\\\n", " ")
    return [re.sub(r" +# .*", "", line) for line in COMMAND.findall(joined) if "..." not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(EXAMPLE.sub("", text(page))):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_readme_is_short_and_opens_with_its_command(page):
    lines = text(page).splitlines()
    assert len(lines) <= 160
    assert "    make demo" in lines[:25]


def test_the_two_readmes_have_the_same_parts():
    english, chinese = READMES
    assert len(headings(english)) == len(headings(chinese))
    assert len(code_blocks(english)) == len(code_blocks(chinese))
    assert commands(english) == commands(chinese)
    targets = [{link for link in LINK.findall(text(page)) if not link.startswith(("#", "README"))} for page in READMES]
    assert targets[0] == targets[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_are_named_are_there(page):
    for file, name in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", text(page)):
        assert re.search(rf"^def {name}\(", text(ROOT / "tests" / file), re.MULTILINE), f"{file}::{name}"


def test_every_page_is_linked_from_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text(READMES[0]))}
    assert set((ROOT / "docs").glob("*.md")) <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_those_of_the_command_line(page):
    targets = set(re.findall(r"^([\w-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, command
            continue
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), command
            continue
        if words[0] == "rdn-fast":
            module, arguments = "rdn_fast", words[1:]
        else:
            at = words.index("-m") + 1
            module, arguments = words[at], words[at + 1 :]
        path = ROOT / module.replace(".", "/")
        assert module == "pytest" or path.is_dir() or path.with_suffix(".py").is_file(), command
        if module == "rdn_fast":
            make_parser().parse_args(with_dashes(arguments))  # UserError for an unknown flag


@pytest.mark.slow
def test_the_examples_of_the_reference_run(tmp_path):
    pytest.importorskip("onnxruntime")
    examples = EXAMPLE.findall(text(ROOT / "docs" / "reference.md"))
    assert len(examples) > 10
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(examples)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,  # ends a hang; some seconds on a quiet machine
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
