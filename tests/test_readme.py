"""The table of faults in README.md: that every test it names is there."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROW = re.compile(r"\| (.+?) \| (.+?) \| `([\w/]+\.py)::(\w+)` \|")


def test_every_test_that_the_table_names_is_there():
    text = (HERE / "README.md").read_text().partition("## What no test runs")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [ROW.fullmatch(line) for line in lines if not line.startswith(("| what goes wrong", "| what is killed"))]
    assert all(rows) and len(rows) >= 60
    for file in {row[3] for row in rows}:
        there = {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        named = {row[4] for row in rows if row[3] == file}
        assert named <= there, f"{file} has no {', '.join(named - there)}"
