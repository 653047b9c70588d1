"""What the book needs of Sphinx and _config.yml cannot say.

1. A chapter's number is the number in its file's name: 07-grad-cam.ipynb is chapter 7, with figures 7.1, 7.2, …,
   whatever else the table of contents holds. Its heading has the number too, for Colab; here Sphinx sets it.
2. MathJax lies beside the pages, so that equations are set offline: of its 24 MB only the 2.6 MB that TeX needs, and
   with outlines instead of fonts, because Firefox loads no fonts into a page that is opened from the disk.
3. Progress bars stay out of the pages. What is left on stderr is a real warning, which `stderr_output: warn` reports.
4. The reference shows docstrings as they are written: their two columns as a list.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import NbElementRenderer
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx.util.fileutil import copy_asset

CHAPTER = re.compile(r"chapters/(\d+)-")
MATHJAX = "tex-svg.js", "input/tex/extensions"
PROGRESS_BAR = re.compile(r"[^\n]*\[(\d+:)?\d\d:\d\d[<,][^\n]*\n?")  # tqdm's: … 7/10 [00:02<00:01, 3.2it/s]


def drop_typed_number(app, page, source):
    if name := CHAPTER.match(page):
        source[0] = re.sub(rf'(?m)^(\s*")?# {int(name[1])}\. ', r"\1# ", source[0], count=1)


def number_by_file_name(app, env):
    numbered = []
    for page, sections in env.toc_secnumbers.items():
        if name := CHAPTER.match(page):
            n = int(name[1])
            env.toc_secnumbers[page] = {anchor: number and (n, *number[1:]) for anchor, number in sections.items()}
            for entry in (env.titles[page], *env.tocs[page].findall(nodes.reference)):
                if entry.get("secnumber"):
                    entry["secnumber"] = [n, *entry["secnumber"][1:]]
            numbered.append(page)
    TocTreeCollector().assign_figure_numbers(env)  # figures and equations count within their chapter
    return numbered


def copy_mathjax(app, error):
    if error is None and app.builder.format == "html":
        source = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
        for part in MATHJAX:
            target = Path(app.outdir, "_static", "mathjax", part)
            copy_asset(source / part, target if (source / part).is_dir() else target.parent)


def without_progress_bars(render):
    def render_stderr(self, output, *place):
        text = PROGRESS_BAR.sub("", output["text"])
        return render(self, {**output, "text": text}, *place) if text.strip() else []

    return render_stderr


def docstring_as_written(app, what, name, obj, options, lines):
    """Blocks of a docstring as reStructuredText: code where indented, a list of definitions where in two columns."""
    written = []
    for block in "\n".join(lines).split("\n\n"):
        rows = block.replace("`", "``").replace("|", "\\|").splitlines()
        entries = [re.fullmatch(r"(\S+(?: \S+)*?)  +(\S.*)", row) for row in rows]
        told = all(entry or row.startswith("   ") for entry, row in zip(entries, rows, strict=True))
        if block.startswith("    "):
            written += ["::", "", *(f"    {row}" for row in block.splitlines())]
        elif rows and entries[0] and told:
            for entry, row in zip(entries, rows, strict=True):
                written += ["", f"``{entry[1]}``", f"    {entry[2]}"] if entry else [f"    {row.strip()}"]
        else:
            written += rows
        written.append("")
    lines[:] = written


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", docstring_as_written)
    app.config.mathjax_path = "mathjax/tex-svg.js"
    app.connect("source-read", drop_typed_number)
    app.connect("env-get-updated", number_by_file_name, priority=900)  # after Sphinx has numbered by position
    app.connect("build-finished", copy_mathjax)
    NbElementRenderer.render_stderr = without_progress_bars(NbElementRenderer.render_stderr)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
