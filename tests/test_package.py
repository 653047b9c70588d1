"""The package's own namespace, whose modules are imported when they are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradcam_lib as gc


def test_every_name_is_that_of_its_module_and_listed():
    for name, module in gc._MODULE_OF.items():
        assert getattr(gc, name) is getattr(getattr(gc, module), name)
    assert set(gc.__all__) == set(gc._MODULE_OF) <= set(dir(gc))
    star = {}
    exec("from gradcam_lib import *", star)
    assert set(gc.__all__) <= set(star)


def test_type_checkers_are_told_the_same():
    tree = ast.parse(Path(gc.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {name.name: statement.module for statement in block.body for name in statement.names}
    assert told == gc._MODULE_OF


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, gradcam_lib as gc; gc.RECIPES; assert not {'torch', 'numpy'} & set(sys.modules); "
        "import gradcam_lib.maths; gc.plots.curves; from gradcam_lib import summarise, datasets"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'explian'"):
        _ = gc.explian
    assert not hasattr(gc, "__main__") and not hasattr(gc, "__wrapped__")
