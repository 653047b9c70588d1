"""Every page of the built book, as a reader meets it: wide and narrow, light and dark, online and from the disk."""

import re
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]


def files_in(toc):
    """The pages that a table of contents names, in its order."""
    if isinstance(toc, list):
        return [page for entry in toc for page in files_in(entry)]
    own = [toc[key] for key in ("root", "file") if key in toc]
    return own + [page for key in ("parts", "chapters", "sections") for page in files_in(toc.get(key, []))]


CONTENTS = files_in(yaml.safe_load((ROOT / "_toc.yml").read_text()))
NOTEBOOKS = [page for page in CONTENTS if (ROOT / f"{page}.ipynb").exists()]
PAGES = [*CONTENTS, "genindex", "search"]
WINDOWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
PATIENCE = 180_000  # milliseconds for a page to load, on a machine that may be training a network beside

# What can be wrong with the page that is open, in words; an empty list when nothing is.
FAULTS = r"""async width => {
    await window.MathJax?.startup?.promise;
    const faults = [], all = selector => [...document.querySelectorAll(selector)];

    const scroll = document.documentElement.scrollWidth;
    if (scroll > width) faults.push(`the page is ${scroll} pixels wide and scrolls sideways`);

    for (const equation of all("div.math"))
        for (const set of equation.querySelectorAll("mjx-container"))
            if (set.scrollWidth > set.clientWidth + 1) faults.push(`equation ${equation.id} is wider than the page`);

    for (const img of all("img")) {
        const alt = (img.getAttribute("alt") ?? "").trim(), source = img.getAttribute("src");
        // None, or one word without a space: nothing, or the name of a file.
        if (/^\S*$|\.(png|jpe?g|gif|svg|webp)$/i.test(alt)) faults.push(`alternative text "${alt}" of ${source}`);
        await img.decode().catch(() => faults.push(`picture did not load: ${source}`));
    }

    for (const math of all(".math"))
        if (!math.querySelector("mjx-container")) faults.push(`maths not typeset: ${math.textContent}`);
    // MathJax marks what it cannot parse, and sets commands that it does not know in red.
    for (const error of all("mjx-merror, [data-mjx-error], [data-mml-node=merror], [data-mml-node=mtext][fill=red]"))
        faults.push(`error in maths: ${error.closest("mjx-container").querySelector("mjx-assistive-mml").textContent}`);

    const text = (document.querySelector("article") ?? document.body).cloneNode(true);
    text.querySelectorAll("pre, code, script, style, mjx-container").forEach(node => node.remove());
    for (const [raw] of text.textContent.matchAll(/.{0,30}(\$\$|\\[(\[]|\\begin\{|\{[a-z:]+\}`|:::).{0,30}/g))
        faults.push(`raw markup: ${raw}`);
    return faults;
}"""


@pytest.fixture(scope="module", params=WINDOWS, ids="{0[0]}-{0[1]}".format)
def reader(request, browser, url):
    """A window of one width and mode that asks no other host, and a list of what went wrong in it."""
    width, mode = request.param
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=mode) as window:
        faults = []
        tab = window.new_page()
        tab.route(lambda to: to.startswith("http") and not to.startswith(url), lambda route: route.abort())
        tab.on("request", lambda r: r.url.startswith((url, "data:")) or faults.append(f"asks another host: {r.url}"))
        tab.on("response", lambda r: r.status < 400 or faults.append(f"{r.status} {r.url}"))
        tab.on("console", lambda m: m.type in ("error", "warning") and faults.append(f"console {m.type}: {m.text}"))
        tab.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        yield tab, faults, width, mode


@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole(reader, url, page):
    tab, faults, width, mode = reader
    faults.clear()
    tab.goto(f"{url}{page}.html", timeout=PATIENCE)
    faults += tab.evaluate(FAULTS, width)
    assert not faults, "\n".join(faults)
    assert tab.evaluate("document.documentElement.dataset.theme") == mode


def test_site_opens_at_its_front_page(browser, url):
    with browser.new_page() as tab:
        tab.goto(url, timeout=PATIENCE)
        tab.wait_for_url(f"{url}{CONTENTS[0]}.html", timeout=PATIENCE)


def test_chapter_reads_from_disk(browser, html):
    """Without a server, as in a downloaded copy: text and maths are there, and nothing else is asked for."""
    page = next(page for page in NOTEBOOKS if 'class="math' in (html / f"{page}.html").read_text())
    with browser.new_page() as tab:
        foreign = []
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or foreign.append(request.url))
        tab.goto((html / f"{page}.html").as_uri(), timeout=PATIENCE)
        faults = tab.evaluate(FAULTS, 1280)
        assert tab.locator("article h1").is_visible()
        assert tab.locator("article mjx-container svg").count() > 0
    assert not faults + foreign, "\n".join(faults + foreign)


@pytest.fixture(scope="module")
def soups(html):
    return {page: BeautifulSoup((html / f"{page}.html").read_text(), "html.parser") for page in PAGES}


def test_links_inside_the_book_resolve(html, soups):
    anchors = {f"{page}.html": {node["id"] for node in soup.find_all(id=True)} for page, soup in soups.items()}
    broken = []
    for page, soup in soups.items():
        for node in soup.find_all(["a", "link", "img", "script"]):
            link = node.get("href") or node.get("src") or ""
            to = urlsplit(urljoin(f"http://book/{page}.html", link))
            path, anchor = unquote(to.path).lstrip("/"), unquote(to.fragment)
            if to.netloc != "book" or to.scheme != "http":
                continue
            if not (html / path).is_file() or (anchor and path in anchors and anchor not in anchors[path]):
                broken.append(f"{page}.html: {link}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_chapter_opens_in_colab(soups, page):
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    place = f"{urlsplit(repository['url']).path}/blob/{repository['branch']}/{page}.ipynb"
    links = [a["href"] for a in soups[page].select("a[href*='colab.research.google.com']")]
    assert f"https://colab.research.google.com/github{place}" in links


def test_every_figure_is_referred_to(soups):
    figures = {node["id"]: page for page, soup in soups.items() for node in soup.select("figure[id], div.figure[id]")}
    links = [a["href"] for soup in soups.values() for a in soup.select("article a[href*='#']:not(.headerlink)")]
    referred = {urlsplit(link).fragment for link in links}
    alone = [f"{page}: {name}" for name, page in figures.items() if name.startswith("fig-") and name not in referred]
    assert figures and not alone, "\n".join(alone)


def test_every_paper_is_cited():
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "chapters" / "references.bib").read_text(), re.M))
    texts = [f.read_text() for f in (ROOT / "chapters").iterdir() if f.suffix in (".ipynb", ".md")]
    cited = {
        key for text in texts for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")
    }
    assert known == {key.strip() for key in cited}


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_chapter_says_when_it_was_executed(soups, page):
    (text,) = (p.get_text() for p in soups[page].select("article p.executed"))
    assert re.fullmatch(
        r"Executed on \d\d \w+ \d{4} in \d+ (s|min) on \d+ processor cores, by Python 3\.\d+\.\d+, .*", text
    )


def test_the_front_page_says_how_long_each_chapter_takes(soups):
    rows = [[cell.get_text().strip() for cell in row.select("td")] for row in soups[CONTENTS[0]].select("tbody tr")]
    assert len(rows) == 10
    assert all(re.fullmatch(r"\d+ min", reads) and re.fullmatch(r"\d+ (s|min)", runs) for *_, reads, runs in rows)
