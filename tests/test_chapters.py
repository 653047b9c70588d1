"""What every chapter must be before it is executed: clean in git, ready for Colab, described in words."""

import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]  # the one place where it stands

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)

SETUP = f"""\
# On Google Colab: install the book's package; torch stays as Colab has it.
# Everywhere: say which accelerator there is.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "gradcam-lib[chapters] @ git+{REPOSITORY}"

import gradcam_lib

print(gradcam_lib.accelerator_found())"""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@every_chapter
def test_lines_of_code_fit_their_column(path):
    shown = [cell for cell in code_cells(path) if "remove-cell" not in cell.metadata.get("tags", [])]
    wide = [line for cell in shown for line in cell.source.splitlines() if len(line) > 82]
    assert not wide, "\n".join(wide)


def test_the_table_of_contents_names_every_chapter():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    named = re.findall(r"chapters/([\w-]+)", str(contents))
    assert {path.stem for path in CHAPTERS} <= set(named)


@every_chapter
def test_its_first_cell_makes_colab_ready(path):
    first = code_cells(path)[0]
    assert first.source == SETUP
    assert first.metadata["tags"] == ["remove-cell", "setup", "nbval-ignore-output"]
    assert not first.outputs


def test_the_repositorys_address_stands_nowhere_else():
    for path in [ROOT / "README.md", *(ROOT / "gradcam_lib").glob("*.py"), *(ROOT / "chapters").glob("*.md")]:
        assert REPOSITORY not in path.read_text(), f"{path.name} names the repository's address"
    for path in CHAPTERS:
        assert path.read_text().count(REPOSITORY) == 1


@every_chapter
def test_it_is_kept_in_its_normal_form(path):
    spec = importlib.util.spec_from_file_location("normalise", ROOT / "chapters" / "normalise.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = nbformat.read(path, as_version=4)
    normal = nbformat.writes(module.normalise(notebook)) + "\n"
    assert path.read_text() == normal, "run `make notebooks` before you commit"
    nbformat.validate(notebook)


@every_chapter
def test_every_figure_has_a_caption_and_an_alternative_text(path):
    names = []
    for cell in code_cells(path):
        draws = any("Figure size" in str(output.get("data")) for output in cell.outputs)
        live = any("<Live figure" in str(output.get("data")) for output in cell.outputs)  # which brings its own text
        about = cell.metadata.get("mystnb", {})
        assert (draws or live) == ("figure" in about), f"no caption, or a caption without a figure: {cell.source}"
        if draws:
            assert len(about["image"]["alt"]) > 60, f"say what the figure shows: {cell.source}"
        if draws or live:
            assert about["figure"]["caption"].endswith(".")
            names.append(about["figure"]["name"])
    assert len(names) == len(set(names))


@every_chapter
def test_its_outputs_hold_no_error_and_no_path_of_one_machine(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert not re.search(r"/(home|root|Users|tmp)/", str(output)), cell.source


@every_chapter
def test_every_numbered_equation_is_checked_on_the_page_and_by_a_test_with_its_number(path):
    chapter = path.stem.partition("-")[0]
    tests = ROOT / "tests" / "equations" / f"test_chapter_{chapter.lstrip('0')}.py"
    cells = nbformat.read(path, as_version=4).cells
    numbered = [len(re.findall(r"(?m)^\$\$ \(eq-[\w-]+\)$", c.source)) * (c.cell_type == "markdown") for c in cells]
    starts = [i for i, equations in enumerate(numbered) if equations]
    for start, end in pairwise([*starts, len(cells)]):
        after = [cell.source for cell in cells[start:end] if cell.cell_type == "code"]
        assert any("assert" in source or "getsource" in source for source in after), cells[start].source
    written = (
        re.findall(rf"def test_equation_{chapter.lstrip('0')}_(\d+)_", tests.read_text()) if tests.exists() else []
    )
    assert sorted(map(int, written)) == list(range(1, sum(numbered) + 1))


def test_every_test_that_a_page_names_exists():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "chapters" / "comparison.ipynb").read_text()))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in tests} == set()
