"""Bring the chapters into the form that is kept in git: source and text outputs, nothing that changes from run to run.

    python chapters/normalise.py             normalise them as they are
    python chapters/normalise.py --execute   execute them first

A reader's edit then gives a difference of a few lines. The site build draws the figures.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

CHAPTERS = Path(__file__).parent
KEPT_METADATA = {"tags", "mystnb"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def normalise(notebook):
    """Change a notebook in place: no pictures, progress bars, execution counts or addresses, cells named in order."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = _joined([kept for output in cell.outputs if (kept := _normal_output(output))])
            if "setup" in cell.metadata.get("tags", []):
                cell.outputs = []  # it says what GPU there is, and the next machine has another
    return notebook


def _joined(outputs):
    """What was printed in several goes as one output: where it is cut depends on the clock."""
    joined = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _normal_output(output):
    if output.output_type == "stream":
        return output if output.name == "stdout" else None  # progress bars and warnings go to stderr
    if output.output_type in ("display_data", "execute_result"):
        output.metadata = nbformat.from_dict({})
        for kind in [kind for kind in output.data if kind.startswith("image/")]:
            del output.data[kind]
        if output.data.get("text/plain", "").startswith("<Live figure"):
            output.data.pop("text/html", None)  # it holds a still picture
        if "text/plain" in output.data:
            output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
        if output.output_type == "execute_result":
            output.execution_count = None
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", action="store_true", help="execute the chapters first")
    parser.add_argument("chapters", nargs="*", type=Path, help="notebooks (default: all)")
    chosen = parser.parse_args()
    for path in chosen.chapters or sorted(CHAPTERS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if chosen.execute:
            print(f"executing {path.name}", flush=True)
            try:
                NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(CHAPTERS)}}).execute()
            except CellExecutionError as error:
                raise SystemExit(f"{path.name} was left as it was, because a cell of it failed:\n{error}") from None
        nbformat.write(normalise(notebook), path)


if __name__ == "__main__":
    main()
