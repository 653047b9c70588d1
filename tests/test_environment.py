"""pyproject.toml, requirements.lock and environment.yml must tell one story.

Run as a script, it writes environment.yml from the other two.
"""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# Their dependencies bring a second copy of cv2, which conda's pip cannot be told to leave out.
LEFT_TO_THE_LOCK = {"benchmarks"}
HEADER = """\
# The book's environment for conda users: conda env create -f environment.yml
# Written by `make lock` from pyproject.toml and requirements.lock.
"""


def direct_requirements():
    """{extra, or "" for the package's own: [Requirement]}"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


def locked_versions():
    lines = re.findall(r"^([\w.-]+)==([\w.!+-]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {name: {version for other, version in lines if other == name} for name, _ in lines}


def expected_environment():
    pins = {
        requirement.name: next(iter(locked_versions()[requirement.name]))
        for extra, requirements in direct_requirements().items()
        if extra not in LEFT_TO_THE_LOCK
        for requirement in requirements
    }
    pip = [*(f"{name}=={version}" for name, version in sorted(pins.items())), "-e ."]
    return {"name": "gradcam-book", "channels": ["conda-forge"], "dependencies": ["python=3.12", "pip", {"pip": pip}]}


def test_every_requirement_is_locked_at_one_version_that_it_allows():
    locked = locked_versions()
    for requirements in direct_requirements().values():
        for requirement in requirements:
            (version,) = locked[requirement.name]
            assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_conda_users_get_the_same_versions():
    assert yaml.safe_load((ROOT / "environment.yml").read_text()) == expected_environment()


def test_the_lock_has_a_hash_for_everything_and_names_no_address():
    text = (ROOT / "requirements.lock").read_text()
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert len(requirements) > 100
    assert all("--hash=sha256:" in requirement for requirement in requirements)
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_the_package_itself_sets_no_upper_bound():
    """A machine that has torch already, such as Colab, must keep the one it has."""
    for requirement in direct_requirements()[""]:
        assert {specifier.operator for specifier in requirement.specifier} == {">="}


if __name__ == "__main__":
    text = yaml.safe_dump(expected_environment(), sort_keys=False)
    (ROOT / "environment.yml").write_text(HEADER + text)
