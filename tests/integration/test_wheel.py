"""The wheel in empty environments: the light core, errors that name an extra, `[train]` alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]
pytest.importorskip("hatchling", reason="builds wheels: pip install hatchling")


def test_the_wheel_works_without_a_checkout() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_wheel.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_carries_every_config(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("parl/configs/")}
    files = (ROOT / "configs").rglob("*.yaml")
    assert names == {f"parl/configs/{file.relative_to(ROOT / 'configs')}" for file in files}


def test_the_description_has_no_relative_link(built: Path) -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "package_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.absolute_links("![a](docs/a.png) [b](b.md#c) [d](#e) [f](https://g.h)") == (
        f"![a]({module.FILES}docs/a.png) [b]({module.PAGES}b.md#c) [d](#e) [f](https://g.h)"
    )
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    assert module.PAGES in text
    assert module.LINK.search(text) is None


def test_the_source_distribution_can_build_the_wheel(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "scripts/package_readme.py",
        "configs/smoke.yaml",
    } <= names
