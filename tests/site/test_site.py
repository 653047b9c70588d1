"""Every page of the built book, as a reader meets it: wide and narrow, light and dark, online and from the disk."""

import re
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

ROOT = Path(__file__).parents[2]


def files_in(toc):
    """The pages that a table of contents names, in its order."""
    if isinstance(toc, list):
        return [page for entry in toc for page in files_in(entry)]
    own = [toc[key] for key in ("root", "file") if key in toc]
    return own + [page for key in ("parts", "chapters", "sections") for page in files_in(toc.get(key, []))]


CONTENTS = files_in(yaml.safe_load((ROOT / "_toc.yml").read_text()))
NOTEBOOKS = [page for page in CONTENTS if (ROOT / f"{page}.ipynb").exists()]
CHAPTERS = [page for page in NOTEBOOKS if re.search(r"/\d+-", page)]
PAGES = [*CONTENTS, "genindex", "search"]
WINDOWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
PATIENCE = 180_000  # milliseconds for a page to load, on a machine that may be training a network beside

# What can be wrong with the page that is open, in words; an empty list when nothing is.
FAULTS = r"""async width => {
    const faults = [], all = selector => [...document.querySelectorAll(selector)];

    const scroll = document.documentElement.scrollWidth;
    if (scroll > width) faults.push(`the page is ${scroll} pixels wide and scrolls sideways`);

    for (const equation of all("div.math")) {
        const number = equation.querySelector(".eqno")?.getBoundingClientRect().left ?? Infinity;
        const { right } = equation.getBoundingClientRect();
        for (const part of equation.querySelectorAll(".base"))
            if (part.getBoundingClientRect().right > Math.min(number, right) + 1)
                faults.push(`equation ${equation.id} has no room`);
    }

    // Pieces of text that lie on one another: neither holds the other, and both show there.
    const pieces = all("article :is(h1, h2, h3, p, li, dt, td, th, pre, figcaption, summary, label, .eqno)")
        .filter(piece => piece.checkVisibility({opacityProperty: true, visibilityProperty: true}))
        .filter(piece => piece.textContent.trim() && !piece.closest("pre pre, .katex, svg"))
        .filter(piece => getComputedStyle(piece).display !== "inline")
        .map(piece => ({piece, box: piece.getBoundingClientRect()}))
        .filter(({box}) => box.width > 2 && box.height > 2)
        .sort((a, b) => a.box.top - b.box.top);
    pieces.forEach((a, n) => {
        for (let m = n + 1; m < pieces.length && pieces[m].box.top < a.box.bottom - 3; m++) {
            const b = pieces[m];
            const across = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
            const down = Math.min(a.box.bottom, b.box.bottom) - b.box.top;
            if (across > 3 && down > 3 && !a.piece.contains(b.piece) && !b.piece.contains(a.piece))
                faults.push(`one over the other: ${[a, b].map(one => one.piece.textContent.slice(0, 40)).join(" | ")}`);
        }
    });

    for (const img of all("img")) {
        const alt = (img.getAttribute("alt") ?? "").trim(), source = img.getAttribute("src");
        // None, or one word without a space: nothing, or the name of a file.
        if (/^\S*$|\.(png|jpe?g|gif|svg|webp)$/i.test(alt)) faults.push(`alternative text "${alt}" of ${source}`);
        img.loading = "eager";
        await img.decode().catch(() => faults.push(`picture did not load: ${source}`));
        const squeezed = (img.width * img.naturalHeight) / (img.height * img.naturalWidth);
        const fills = img.checkVisibility() && getComputedStyle(img).objectFit === "fill";
        if (fills && Math.abs(squeezed - 1) > 0.05) faults.push(`${source} lost its shape: ${squeezed}`);
    }

    for (const math of all(".math"))
        if (!math.querySelector(".katex")) faults.push(`maths not typeset: ${math.textContent}`);
    for (const error of all(".katex-error")) faults.push(`error in maths: ${error.title}`);
    // KaTeX marks a command that it does not know by its colour.
    for (const unknown of all(".katex [style*='color:#cc0000']"))
        faults.push(`unknown in maths: ${unknown.textContent}`);
    await document.fonts.ready;
    const weight = font => ({normal: 400, bold: 700})[font.weight] ?? font.weight;
    const named = (family, weight, style) => [family.split(",")[0].replaceAll('"', ""), weight, style].join(" ");
    const embedded = new Set([...document.fonts].map(font => named(font.family, weight(font), font.style)));
    for (const sign of all(".katex-html *")) {
        const { fontFamily, fontWeight, fontStyle } = getComputedStyle(sign);
        const font = named(fontFamily, fontWeight, fontStyle);
        if ([...sign.childNodes].some(node => node.nodeType === 3) && !embedded.has(font))
            faults.push(`no font ${font} for ${sign.textContent}`);
    }

    const text = (document.querySelector("article") ?? document.body).cloneNode(true);
    text.querySelectorAll("pre, code, script, style, .katex").forEach(node => node.remove());
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


@pytest.mark.parametrize("page", PAGES)
def test_page_is_light(browser, url, page):
    """Below 1.5 MB with everything but its pictures, as they lie on the disk; a host that compresses sends a third."""
    with browser.new_page() as tab:
        responses = []
        tab.on("response", lambda response: responses.append(response))
        tab.goto(f"{url}{page}.html", timeout=PATIENCE, wait_until="networkidle")
        sizes = {r.url: len(r.body()) for r in responses if r.request.resource_type != "image"}
        assert 0.5e6 < sum(sizes.values()) < 1.5e6, sizes


def test_search_finds_a_word_from_disk(browser, html):
    with browser.new_page() as tab:
        tab.goto(f"{(html / 'search.html').as_uri()}?q=counterfactual", timeout=PATIENCE)
        found = tab.locator("ul.search li a").first
        found.wait_for(timeout=PATIENCE)
        assert "chapters/" in found.get_attribute("href")


def test_first_use_of_a_term_leads_to_the_glossary(soups):
    entries = {node["id"] for node in soups["chapters/glossary"].select("dl.glossary dt[id]")}
    for page in CHAPTERS:
        terms = [urlsplit(link["href"]).fragment for link in soups[page].select("article a.term")]
        assert len(terms) >= 5 and len(set(terms)) == len(terms) and entries.issuperset(terms), page


def test_what_search_engines_and_chats_are_told(html, soups):
    root = yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["baseurl"]
    listed = re.findall(r"<loc>([^<]*)</loc>", (html / "sitemap.xml").read_text())
    assert {f"{root}{page}.html" for page in CONTENTS} <= set(listed)
    for page in CONTENTS:
        told = {tag["property"]: tag["content"] for tag in soups[page].select("meta[property^='og:']")}
        assert told["og:url"] == f"{root}{page}.html" and told["og:title"] and told["og:description"]
        with Image.open(html / told["og:image"].removeprefix(root)) as card:
            assert card.size == (int(told["og:image:width"]), int(told["og:image:height"]))


def test_missing_page_is_a_page_of_the_book(browser, html, url):
    """At any depth: a host shows 404.html at the address that was asked for."""
    prefix = "/gradcam-book/"
    with browser.new_page() as tab:
        faults = []
        tab.route(
            lambda to: urlsplit(to).path.startswith(prefix),
            lambda route: route.fulfill(path=html / unquote(urlsplit(route.request.url).path).removeprefix(prefix)),
        )
        tab.route("**/no/such/page.html", lambda route: route.fulfill(status=404, path=html / "404.html"))
        tab.on("response", lambda r: r.status < 400 or r.url.endswith("page.html") or faults.append(r.url))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(f"{url.rstrip('/')}{prefix}no/such/page.html", timeout=PATIENCE)
        assert tab.locator("article h1").inner_text() == "There is no page here"
        assert tab.locator("nav a", has_text="Grad-CAM").count() > 1
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", [CONTENTS[0], "chapters/07-grad-cam"])
def test_page_prints(browser, url, page, tmp_path):
    """The text alone, with its figures, equations and folded solutions, in black on white."""
    with browser.new_page(color_scheme="dark") as tab:
        tab.goto(f"{url}{page}.html", timeout=PATIENCE)
        tab.emulate_media(media="print")
        for part in (".bd-sidebar-primary", ".bd-header-article", ".bd-sidebar-secondary", "button.copybtn"):
            assert not any(node.is_visible() for node in tab.locator(part).all()), part
        assert all(solution.is_visible() for solution in tab.locator("article details > *").all())
        paint = "getComputedStyle(document.querySelector('article p')).color"
        assert tab.evaluate(paint) == "rgb(0, 0, 0)"
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert tab.evaluate(wide) <= 0


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
        assert tab.locator("article .katex-html").count() > 0
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
