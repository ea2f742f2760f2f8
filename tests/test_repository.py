"""The rules of the repository, read off its files: needs no package installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
IMPORT_NAMES = {package: package.replace("-", "_") for package in PACKAGES}

per_package = pytest.mark.parametrize("package", PACKAGES)


def project(package: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def distribution(module: str) -> str:
    """Returns what to install for a top-level import."""
    return {"ecmwf": "ecmwf-datastores-client"}.get(module, module.lower().replace("_", "-"))


def trees(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "packages" / package / "src").rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the absolute imports in `tree`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def module_level(tree: ast.Module) -> ast.Module:
    """The statements that every import of the module executes."""
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module(body=list(body), type_ignores=[])


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def test_there_are_five_packages() -> None:
    assert PACKAGES == ["shardtensor", "wx-data", "wx-estimators", "wx-eval", "wx-models"]


@per_package
def test_no_package_imports_another(package: str) -> None:
    others = set(IMPORT_NAMES.values()) - {IMPORT_NAMES[package]}
    assert not {str(path): found for path, tree in trees(package) if (found := imported(tree) & others)}


@per_package
def test_no_package_requires_another(package: str) -> None:
    table = project(package)
    required = distributions(table["project"]["dependencies"])
    for extra in table["project"].get("optional-dependencies", {}).values():
        required |= distributions(extra)
    assert not required & set(PACKAGES)


@per_package
def test_ruff_bans_the_other_four(package: str) -> None:
    banned = project(package)["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) == set(IMPORT_NAMES.values()) - {IMPORT_NAMES[package]}


@per_package
def test_every_import_is_declared(package: str) -> None:
    """Module-level imports need a dependency; an extra is enough for an import inside a function.

    As is being named under `tool.repository.elsewhere`, for what no extra can install. A module named under
    `tool.repository.behind` needs the extra given there, and no other may import it on its module level.
    """
    table = project(package)
    metadata = table["project"]
    declared = distributions(metadata["dependencies"])
    optional = set[str]().union(*map(distributions, metadata.get("optional-dependencies", {}).values()))
    optional |= set(table["tool"].get("repository", {}).get("elsewhere", []))
    behind = table["tool"].get("repository", {}).get("behind", {})
    free = sys.stdlib_module_names | {IMPORT_NAMES[package]}
    for path, tree in trees(package):
        always = {distribution(name) for name in imported(module_level(tree)) - free}
        if path.stem in behind:
            always -= distributions(metadata["optional-dependencies"][behind[path.stem]])
        direct = {node.module for node in module_level(tree).body if isinstance(node, ast.ImportFrom)}
        assert not direct & set(behind), f"{path} imports {direct & set(behind)} unconditionally"
        anywhere = {distribution(name) for name in imported(tree) - free}
        assert always <= declared, f"{path} imports {always - declared} unconditionally"
        assert anywhere <= declared | optional, f"{path} imports {anywhere - declared - optional}"


@per_package
def test_no_global_random_state(package: str) -> None:
    """Every draw of torch's names its generator."""
    drawing = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
    forbidden = {"manual_seed", "seed", "rand_like", "randn_like", "randint_like"}
    for path, tree in trees(package):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
                continue
            assert node.func.attr not in forbidden, f"{path}:{node.lineno} uses the global generator"
            if node.func.attr in drawing:
                assert any(k.arg == "generator" for k in node.keywords), (
                    f"{path}:{node.lineno} has no generator"
                )


def protocols(package: str) -> Iterator[ast.ClassDef]:
    for _, tree in trees(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
                yield node


@per_package
def test_protocols_name_their_method(package: str) -> None:
    """Every nn.Module satisfies any Protocol of `__call__`, so that one checks nothing."""
    for protocol in protocols(package):
        methods = {node.name for node in protocol.body if isinstance(node, ast.FunctionDef)}
        assert "__call__" not in methods, protocol.name


@per_package
def test_version_and_changelog_agree(package: str) -> None:
    changelog = (ROOT / "packages" / package / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == project(package)["project"]["version"]


@per_package
def test_tags_have_a_changelog_entry(package: str) -> None:
    command = ["git", "tag", "--list", f"{package}-v*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split()
    changelog = (ROOT / "packages" / package / "CHANGELOG.md").read_text()
    for tag in tags:
        assert f"## [{tag.removeprefix(f'{package}-v')}]" in changelog, tag


@per_package
def test_package_carries_licence_and_type_marker(package: str) -> None:
    folder = ROOT / "packages" / package
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "src" / IMPORT_NAMES[package] / "py.typed").is_file()
    assert "Typing :: Typed" in project(package)["project"]["classifiers"]


def test_test_modules_have_unique_names() -> None:
    names = [
        path.name
        for pattern in ("packages/*/tests", "tests")
        for path in ROOT.glob(f"{pattern}/**/test_*.py")
    ]
    assert sorted(set(names)) == sorted(names)


def test_lock_is_portable() -> None:
    """One public registry, members of the workspace, and nothing else: no folder, mirror or local version."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    ours = {package["name"] for package in packages if "registry" not in package["source"]}
    assert ours == {*PACKAGES, "wx-workspace"}

    theirs = [package for package in packages if package["name"] not in ours]
    assert len({package["source"]["registry"] for package in theirs}) == 1
    assert not [package["name"] for package in theirs if "+" in package["version"]]

    files = [
        file for package in theirs for file in [*package.get("wheels", []), package.get("sdist")] if file
    ]
    urls = {theirs[0]["source"]["registry"], *(file["url"] for file in files)}
    assert len({urlsplit(url).netloc for url in urls}) == 2  # the index, and where it keeps the files
    for url in urls:
        parts = urlsplit(url)
        assert parts.scheme == "https"
        assert re.fullmatch(r"[a-z.]+\.org", parts.netloc), "a port, a user or a private host"


def readme_lines() -> list[str]:
    return [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]


def test_readme_command_is_what_ci_runs() -> None:
    [command] = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("python")]
    assert command in readme_lines()


def test_readme_names_the_forecast() -> None:
    assert "python -m pip install uv nox && python -m nox -s forecast" in readme_lines()


def test_named_nox_sessions_exist() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    for path in [*ROOT.glob(".github/workflows/*.yml"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        named = set(re.findall(r"nox -s \"?(\w+)", path.read_text()))
        assert named <= sessions, f"{path.name} names {named - sessions}"


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.:/~])/(?:home|root|Users|work|opt|mnt|scratch)/\w")
    found = {}
    for path in tracked_files():
        if path.suffix in {".md", ".py", ".toml", ".yml", ".json", ".txt", ".cfg", ".lock", ".html", ""}:
            text = path.read_text(encoding="utf-8", errors="replace")
            if match := pattern.search(text):
                found[str(path.relative_to(ROOT))] = match[0]
    assert not found


@per_package
def test_every_public_protocol_has_a_contract(package: str) -> None:
    """Something is annotated to satisfy it, and something that must not is refused by the type checkers."""
    source = ROOT / "packages" / package / "src" / IMPORT_NAMES[package]
    public = ast.parse((source / "__init__.py").read_text())
    exported = {
        alias.asname or alias.name
        for node in public.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    contracts = "".join(path.read_text() for path in ROOT.glob("tests/contracts/*.py"))
    for protocol in protocols(package):
        if protocol.name in exported:
            name = rf"{IMPORT_NAMES[package]}\.{protocol.name}\b"
            aliases = re.findall(rf"^(\w+) = {name}", contracts, re.MULTILINE)
            returned = rf"(?:{'|'.join([name, *aliases])})"
            assert re.search(rf"^def (?!refused_)\w+\(.*\) -> {returned}", contracts, re.MULTILINE), name
            assert re.search(rf"^def refused_\w+\(.*\) -> {returned}", contracts, re.MULTILINE), name
