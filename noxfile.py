"""Every check of this repository, defined once.

`nox` runs lint, typecheck, the unit tests of each package from its own wheel in its own environment, and the
integration tests of the five wheels together. `nox -l` lists the rest.
"""

from __future__ import annotations

import os
import shutil
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"

PACKAGES = ("shardtensor", "wx-data", "wx-models", "wx-estimators", "wx-eval")
PYTHONS = ("3.11", "3.12", "3.13")

SLOW = tuple(
    package
    for package in PACKAGES
    if any("mark.slow" in path.read_text() for path in Path("packages", package, "tests").glob("*.py"))
)

# Peers of the parity tests. They are no dependency group, since uv.lock would have to contain it and
# holds a version of fsspec that PhysicsNeMo refuses.
PEERS = {
    "wx-estimators": (
        "flow-matching==1.0.10",
        "nvidia-physicsnemo==2.2.2",
        "scoringrules==0.10.0",
        "torchcfm==1.0.7",
        "torchsde==0.2.6",
        "torchvision",  # of PhysicsNeMo: the version that belongs to the torch of the session
    ),
    "wx-eval": (
        "arch==8.0.0",
        "dieboldmariano==1.1.0",
        "ducc0==0.42.0",
        "earth2studio==0.19.0",
        "metcalcpy==2.1",
        "numba",
        "properscoring==0.1",
        "pyshtools==4.14.1",
        "scikit-learn==1.9.1",
        "scores==2.7.0",
        "scoringrules==0.10.0",
        "statsmodels==0.15.0",
        "xrft==1.0.1",
        "xskillscore==0.0.29",
    ),
}

# One thread: the same rounding on every machine, and no contention between the ranks of a multi-process test.
TEST_ENV = {"OMP_NUM_THREADS": "1"}

# uv does not read pip's settings: offer it the same local wheels.
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", ",".join(os.environ["PIP_FIND_LINKS"].split()))


# A local folder or index must never get into uv.lock.
PUBLIC_ONLY = {
    **dict.fromkeys(("UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")),
    "UV_NO_CONFIG": "1",
}


def project(package: str) -> Path:
    return Path("packages", package, "pyproject.toml")


def locked(session: nox.Session) -> str:
    """Write uv.lock as constraints: unlike the lock itself, they accept a local build of the same version."""
    out = Path(session.create_tmp(), "locked.txt")
    session.run(
        *("uv", "export", "--frozen", "--all-packages", "--all-groups", "--all-extras"),
        *("--no-emit-workspace", "--no-hashes", "--no-annotate", "--quiet", "--output-file", str(out)),
        external=True,
        silent=True,
    )
    return str(out)


def wheel(session: nox.Session, package: str) -> str:
    """Build the wheel of one package and return it as a requirement with all its extras."""
    out = Path(session.create_tmp(), "dist", package)
    shutil.rmtree(out, ignore_errors=True)  # a reused session must not see the wheel of another version
    session.run(
        *("uv", "build", "--wheel", "--package", package, "--out-dir", str(out), "--quiet"),
        external=True,
        silent=True,
    )
    [path] = out.glob("*.whl")
    extras = tomllib.loads(project(package).read_text())["project"].get("optional-dependencies", {})
    return f"{path}[{','.join(extras)}]" if extras else str(path)


def install(session: nox.Session, packages: Iterable[str], *groups: str, constraints: str = "") -> None:
    """Install wheels of our packages and dependency groups, at the versions of the lock by default."""
    session.install(
        *[wheel(session, package) for package in packages],
        *[word for group in groups for word in ("--group", group)],
        *("--constraints", constraints or locked(session)),
    )


def pytest(session: nox.Session, *arguments: str) -> None:
    session.run("pytest", *arguments, *session.posargs, env=TEST_ENV)


def unit_tests(session: nox.Session, package: str, constraints: str = "") -> None:
    """Test one package, and the examples of its README, with none of the other four installed."""
    install(session, [package], f"{project(package)}:test", constraints=constraints)
    # A package whose tests are arithmetic in one process asks for pytest-xdist.
    tools = tomllib.loads(project(package).read_text())["dependency-groups"]["test"]
    two = ("-n", "2", "--dist", "worksteal") if any("xdist" in tool for tool in tools) else ()
    pytest(session, f"packages/{package}/tests", f"packages/{package}/README.md", *two)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, a current lock, and the rules of the repository."""
    install(session, [], "lint", "test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("uv", "lock", "--check", "--quiet", env=PUBLIC_ONLY, external=True)
    pytest(session, "tests/test_repository.py")


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy --strict on all library code; the contracts with mypy and pyright."""
    install(session, PACKAGES, "recipes", "types", "test")
    sources = [f"packages/{package}/src" for package in PACKAGES]
    session.run("mypy", "--strict", *sources, "recipes", "tests/contracts", "noxfile.py")
    session.run("pyright", "--pythonpath", shutil.which("python", path=session.bin) or "python")


@nox.session
@nox.parametrize("package", PACKAGES)
def unit(session: nox.Session, package: str) -> None:
    """One package alone, from its wheel, at the versions of the lock."""
    unit_tests(session, package)


@nox.session
def integration(session: nox.Session) -> None:
    """The five wheels together: contracts, the assembled forecaster, the repository, the docs."""
    install(session, PACKAGES, "recipes", "test")
    pytest(session, "tests", "docs", "README.md")


@nox.session(default=False, python="3.11")
@nox.parametrize("package", PACKAGES)
def minimum(session: nox.Session, package: str) -> None:
    """One package alone at the lowest versions it declares (downloads the registry's build of torch)."""
    # From the project, not the wheel: only a project's own requirements are "direct". Theirs are left to the
    # installation, which has to agree with the test dependencies as well.
    floors = str(Path(session.create_tmp(), "floors.txt"))
    session.run(
        *("uv", "pip", "compile", "--resolution=lowest-direct", "--no-deps", "--all-extras", "--quiet"),
        *("--no-annotate", "--output-file", floors, str(project(package))),
        external=True,
        silent=True,
    )
    unit_tests(session, package, constraints=floors)


@nox.session(default=False, python=PYTHONS)
@nox.parametrize("package", PACKAGES)
def matrix(session: nox.Session, package: str) -> None:
    """`unit` on every supported Python."""
    unit_tests(session, package)


@nox.session(default=False)
@nox.parametrize("package", SLOW)
def slow(session: nox.Session, package: str) -> None:
    """The tests of one package that take minutes, from its wheel."""
    install(session, [package], f"{project(package)}:test")
    pytest(session, f"packages/{package}/tests", "-m", "slow")


@nox.session(default=False)
@nox.parametrize("package", [*PEERS])
def parity(session: nox.Session, package: str) -> None:
    """One package, from its wheel, against the pinned packages of others: none of them may be missing."""
    groups = ("--group", f"{project(package)}:test", "--group", "torch")
    session.install(wheel(session, package), *groups, *PEERS[package])
    [tests] = Path("packages", package, "tests").glob("test_*_parity.py")
    session.run("pytest", str(tests), *session.posargs, env={**TEST_ENV, "REQUIRE_PEERS": "1"})


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the site with warnings as errors; `integration` runs its Python blocks."""
    install(session, PACKAGES, "recipes", "docs")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Fill dist/ for every package, or those named: the sdist, and the wheel built from it."""
    shutil.rmtree("dist", ignore_errors=True)
    for package in session.posargs or PACKAGES:
        session.run("uv", "build", "--package", package, "--quiet", external=True)
    for path in sorted(Path("dist").glob("*.whl")):
        names = zipfile.ZipFile(path).namelist()
        missing = [name for name in ("py.typed", "LICENSE") if not any(n.endswith(f"/{name}") for n in names)]
        if missing:
            session.error(f"{path} lacks {', '.join(missing)}")
        session.log(f"{path}: {len(names)} files")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the named scripts of benchmarks/, or all of them; each prints a table."""
    install(session, PACKAGES, "recipes", "test")
    for script in session.posargs or sorted(map(str, Path("benchmarks").glob("*.py"))):
        session.run("python", script)


@nox.session(default=False)
def forecast(session: nox.Session) -> None:
    """Train the reference forecaster on the nature run, forecast and verify."""
    install(session, PACKAGES, "recipes")
    session.run("python", "-m", "recipes.forecaster", *(session.posargs or ["run"]))


@nox.session(default=False)
def dev(session: nox.Session) -> None:
    """Make .venv with the five packages editable and every tool."""
    session.run("uv", "venv", "--allow-existing", ".venv", external=True)
    groups = ["recipes", "test", "lint", "types", *(f"{project(package)}:test" for package in PACKAGES)]
    session.run(
        *("uv", "pip", "install", "--python", ".venv", "--constraints", locked(session)),
        *[f"--editable=packages/{package}" for package in PACKAGES],
        *[word for group in groups for word in ("--group", group)],
        external=True,
    )


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Rewrite uv.lock from the public registry."""
    session.run("uv", "lock", *session.posargs, env=PUBLIC_ONLY, external=True)
