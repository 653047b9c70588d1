"""What the book needs of Sphinx and _config.yml cannot say.

1. A chapter's number is the number in its file's name: 07-grad-cam.ipynb is chapter 7, with figures 7.1, 7.2, …,
   whatever else the table of contents holds. Its heading has the number too, for Colab; here Sphinx sets it.
2. The fonts of icons and equations come with the pages, cut down to what they show (webfonts.py).
3. Progress bars stay out of the pages. What is left on stderr is a real warning, which `stderr_output: warn` reports.
4. The reference shows docstrings as they are written: their two columns as a list.
5. The page Explore runs two networks in the browser, which are exported when the book is built (explore.py).
6. Each chapter ends with when, in what time and with which versions it was executed; the front page's table of chapters
   says how long each takes to read and to run.
7. The first use of a glossary's term on a page leads to the glossary.
"""

import datetime
import html
import os
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import webfonts
from docutils import nodes
from myst_nb.core.render import NbElementRenderer
from myst_nb.sphinx_ import NbMetadataCollector
from PIL import Image
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinxcontrib.katex import katex_version

CHAPTER = re.compile(r"chapters/(\d+)-")
GLOSSARY = "chapters/glossary"
TERMS_ALONE = GLOSSARY, "chapters/bibliography", "chapters/api"  # pages whose words are left as they are
KATEX_BYTES = 1_482_300  # of its package
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


def embed_fonts(app, error):
    if error is None and app.builder.format == "html":
        from gradcam_lib.datasets import data_cache  # here, for it imports PyTorch
        from gradcam_lib.npm import npm_files

        static = Path(app.outdir, "_static")
        package = f"katex@{katex_version}"
        files = npm_files(package, KATEX_BYTES, webfonts.KATEX_FILES, data_cache() / package)
        (static / "katex.css").write_text(webfonts.katex_style(files))
        (static / "icons.css").write_text(webfonts.icon_style(Path(app.outdir)))
        shutil.rmtree(static / "vendor")  # Font Awesome whole


def escape_maths(app, doctree, page):
    """sphinxcontrib-katex writes displayed formulas as they are: j<k would open an element."""
    for formula in doctree.findall(nodes.math_block):
        formula[:] = [nodes.Text(html.escape(formula.astext(), quote=False))]


def defer_katex(app, page, template, context, doctree):
    """KaTeX sets the equations once the page is there, instead of holding it up."""
    for script in context.get("script_files", ()):
        if "katex" in str(script.filename) or "auto-render" in str(script.filename):
            script.attributes["defer"] = "defer"


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


def size_pictures(app, page, template, context, doctree):
    """Each picture's size, so that the page does not jump when it comes, and word to the browser not to hurry."""
    files = {name: Path(app.srcdir, file) for file, name in app.builder.images.items()}

    def sized(tag):
        width, height = Image.open(files[tag[1]]).size
        return f'{tag[0]} width="{width}" height="{height}" loading="lazy" decoding="async"'

    if "body" in context:
        source = r'<img (?:[^>]*? )?src="[^"]*_images/([\w.-]+\.(?:png|jpe?g))"'
        context["body"] = re.sub(source, sized, context["body"])


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


def link_terms(app, doctree, page):
    """Where a page first uses a term of the glossary in its prose, the term leads there; its tip is the definition."""
    if GLOSSARY not in app.env.found_docs or page not in app.env.found_docs or page in TERMS_ALONE:
        return
    entries = {}  # by term: where it is defined, what is told of it, or None once it has been linked
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        told = " ".join(item.next_node(nodes.definition).astext().split())
        chapter = CHAPTER.match(page)
        explained_here = chapter and re.search(rf"hapter {int(chapter[1])}\b", told)
        terms = [*item.findall(nodes.term)]
        tip = re.match(r".*?\.(?= |$)|.*", told)[0]
        entry = [None if explained_here else (terms[0]["ids"][0], tip)]  # shared by the terms
        entries |= {term.astext(): entry for term in terms}
    words = "|".join(map(as_pattern, sorted(entries, key=len, reverse=True)))
    for text in [*doctree.findall(in_prose)]:
        parts, end = [], 0
        for found in re.finditer(rf"(?<![\w-])({words})s?(?![\w-])", text):
            entry = next(entry for term, entry in entries.items() if re.fullmatch(as_pattern(term), found[1]))
            if entry[0]:
                anchor, tip = entry[0]
                place = f"{app.builder.get_relative_uri(page, GLOSSARY)}#{anchor}"
                link = nodes.reference("", found[0], refuri=place, reftitle=tip, internal=True, classes=["term"])
                parts += [nodes.Text(text[end : found.start()]), link]
                end, entry[0] = found.end(), None
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def as_pattern(term):
    """A term at the start of a sentence, too, and over the end of a line."""
    first = f"[{term[0]}{term[0].upper()}]" if term[0].isalpha() else re.escape(term[0])
    return first + r"\s+".join(map(re.escape, term[1:].split(" ")))


def in_prose(node):
    """Text of a paragraph, outside of links, code, formulas, tables and captions."""
    if not isinstance(node, nodes.Text):
        return False
    while isinstance(node.parent, nodes.emphasis | nodes.strong):
        node = node.parent
    return isinstance(node.parent, nodes.paragraph) and not isinstance(node.parent.parent, nodes.entry)


def words_of(doctree):
    """Prose and code, without what the code gave out."""
    for output in list(
        doctree.findall(lambda node: "cell_output" in getattr(node, "attributes", {}).get("classes", ()))
    ):
        output.parent.remove(output)
    return doctree.astext().split()


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def list_every_page(app, exception):
    """In the sitemap, which would have the pages that this build has written, and not those that are there already."""
    links = app.sitemap_links
    while not links.empty():
        links.get()
    for page in sorted(app.env.found_docs):
        if f"{page}.html" not in app.config.sitemap_excludes:
            links.put((f"{page}.html", None))


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", docstring_as_written)
    app.connect("source-read", drop_typed_number)
    app.connect("env-get-updated", number_by_file_name, priority=900)  # after Sphinx has numbered by position
    app.connect("doctree-resolved", escape_maths)
    app.connect("html-page-context", defer_katex)
    app.connect("build-finished", embed_fonts)
    app.connect("build-finished", make_explore)
    app.connect("build-finished", list_every_page, priority=400)  # before the sitemap is written
    app.connect("html-page-context", mend_roles)
    app.connect("html-page-context", size_pictures)
    app.connect("doctree-resolved", add_when_executed)
    app.connect("doctree-resolved", add_times)
    app.connect("doctree-resolved", link_terms)
    NbElementRenderer.render_stderr = without_progress_bars(NbElementRenderer.render_stderr)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
