"""What the book needs of Sphinx and _config.yml cannot say.

1. A chapter's number is the number in its file's name: 07-grad-cam.ipynb is chapter 7, with figures 7.1, 7.2, …,
   whatever else the table of contents holds. Its heading has the number too, for Colab; here Sphinx sets it.
2. MathJax lies beside the pages, so that equations are set offline: of its 24 MB only the 2.6 MB that TeX needs, and
   with outlines instead of fonts, because Firefox loads no fonts into a page that is opened from the disk.
3. Progress bars stay out of the pages. What is left on stderr is a real warning, which `stderr_output: warn` reports.
4. The reference shows docstrings as they are written: their two columns as a list.
5. The page Explore runs two networks in the browser, which are exported when the book is built (explore.py).
6. Each chapter ends with when, in what time and with which versions it was executed; the front page's table of chapters
   says how long each takes to read and to run.
"""

import datetime
import os
import platform
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import NbElementRenderer
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx.util.fileutil import copy_asset

CHAPTER = re.compile(r"chapters/(\d+)-")
MATHJAX = "tex-svg.js", "input/tex/extensions"
VERSIONS = "gradcam-lib", "torch", "torchvision", "numpy"  # that a chapter's outputs depend on most
MISLEADING = ' aria-label="Toggle hidden content"', ' role="list" class="citation-list"', ' role="doc-biblioentry"'
READING = 200  # words a minute, of prose and of code
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


def make_explore(app, error):
    if error is None and app.builder.format == "html" and "chapters/explore" in app.env.found_docs:
        import explore  # here, for it imports PyTorch

        explore.add_explore(Path(app.outdir, "_static", "explore"))


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


def mend_roles(app, page, template, context, doctree):
    """Labels and roles of others' HTML that mislead a screen reader, and without which the elements say enough."""
    for attribute in MISLEADING if "body" in context else ():
        context["body"] = context["body"].replace(attribute, "")


def executed(app, page):
    return NbMetadataCollector.get_exec_data(app.env, page) if page in app.env.found_docs else None


def add_when_executed(app, doctree, page):
    if run := executed(app, page):
        date = datetime.date.fromtimestamp(run["mtime"])
        text = f"Executed on {date:%d %B %Y} in {duration(run['runtime'])} on {os.cpu_count()} processor cores, by "
        text += f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in VERSIONS)}."
        doctree.next_node(nodes.section).append(nodes.paragraph("", text, classes=["executed"]))


def add_times(app, doctree, page):
    """Two columns at the table of chapters."""
    if page != app.config.root_doc:
        return
    group = next(doctree.findall(nodes.tgroup))
    for _ in range(2):
        group.insert(0, nodes.colspec(colwidth=12))
    group["cols"] += 2
    for row in group.findall(nodes.row):
        times = ["reads in", "runs in"]
        for link in row.findall(nodes.reference):
            chapter = f"chapters/{Path(link['refuri']).stem}"
            run, words = executed(app, chapter), len(words_of(app.env.get_doctree(chapter)))
            times = [duration(60 * words / READING), duration(run["runtime"]) if run else ""]
        row += [nodes.entry("", nodes.paragraph("", time)) for time in times]


def words_of(doctree):
    """Prose and code, without what the code gave out."""
    for output in list(
        doctree.findall(lambda node: "cell_output" in getattr(node, "attributes", {}).get("classes", ()))
    ):
        output.parent.remove(output)
    return doctree.astext().split()


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", docstring_as_written)
    app.config.mathjax_path = "mathjax/tex-svg.js"
    app.connect("source-read", drop_typed_number)
    app.connect("env-get-updated", number_by_file_name, priority=900)  # after Sphinx has numbered by position
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", make_explore)
    app.connect("html-page-context", mend_roles)
    app.connect("doctree-resolved", add_when_executed)
    app.connect("doctree-resolved", add_times)
    NbElementRenderer.render_stderr = without_progress_bars(NbElementRenderer.render_stderr)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
