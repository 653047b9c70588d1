"""The fonts of the pages, icons and mathematics, each embedded in a style sheet and cut down to what the pages show.

Embedded, because Firefox loads no font file into a page that is opened from the disk.
"""

import base64
import io
import re
from pathlib import Path

import pydata_sphinx_theme
from fontTools import subset, ttLib

# Of KaTeX's 20 fonts: no Fraktur, no script, no typewriter, and of the rest no bold that formulas here do not use.
KATEX_FONTS = (
    "AMS-Regular", "Caligraphic-Regular", "Main-Bold", "Main-Italic", "Main-Regular", "Math-Italic",
    "SansSerif-Regular", "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular",
)  # fmt: skip
KATEX_FILES = ["dist/katex.min.css", *(f"dist/fonts/KaTeX_{name}.woff2" for name in KATEX_FONTS)]

ICON_FONTS = {"solid": ("fas", "fa-solid-900", 900, "Free"), "brands": ("fab", "fa-brands-400", 400, "Brands")}
ICON_RULES = """\
.fas, .fab, .fa-solid, .fa-brands {
  display: inline-block;
  font-style: normal;
  font-variant: normal;
  line-height: 1;
  text-align: center;
  text-rendering: auto;
  -webkit-font-smoothing: antialiased;
}
.fa-lg { font-size: 1.25em; line-height: 0.05em; vertical-align: -0.075em; }
/* What the theme says of the pictures that Font Awesome's script would have put in place of these elements. */
.bd-header-article .btn i { width: 1.3rem; font-size: 1.15rem; line-height: 1; }
.bd-header-article .btn i.fa-lg { position: relative; top: 0.2em; }
.search-button-field > i { display: inline-block; }
.search-button__wrapper.show i { font-size: var(--pst-font-size-icon); }
.bd-sidebar-secondary .onthispage::after { font-family: "Font Awesome 6 Free" !important; }
"""


def katex_style(folder: Path) -> str:
    """KaTeX's own style sheet, from a folder with KATEX_FILES, with the fonts in it."""

    def embedded(face):
        name = re.search(r"fonts/KaTeX_([\w-]+)\.woff2", face[0])[1]
        if name not in KATEX_FONTS:
            return ""
        source = data_url(folder.joinpath(f"KaTeX_{name}.woff2").read_bytes(), "woff2")
        return re.sub(r"src:[^}]*", f"src:{source}", face[0])

    return re.sub(r"@font-face\{[^}]*\}", embedded, (folder / "katex.min.css").read_text())


def icon_style(html: Path) -> str:
    """A style sheet for those icons of Font Awesome that the pages in a folder show, or the theme's own styles."""
    awesome = next(Path(pydata_sphinx_theme.__file__).parent.glob("theme/*/static/vendor/fontawesome/*"))
    codes = {
        name: code
        for names, code in re.findall(
            r'([^{}]+)\{content:"\\(f?[\da-f]+)"\}', (awesome / "css/all.min.css").read_text()
        )
        for name in re.findall(r"\.(fa-[\w-]+):before", names)
    }
    shown = {name for page in html.rglob("*.html") for name in re.findall(r"\bfa-[\w-]+", page.read_text("utf-8"))}
    shown = sorted(shown & codes.keys())
    styles = "".join(file.read_text("utf-8") for file in html.glob("_static/styles/*.css"))
    wanted = {int(code, 16) for code in (*map(codes.get, shown), *re.findall(r'"\\(f[\da-f]{3})"', styles))}
    wanted |= {ord(character) for character in styles if "\ue000" <= character <= "\uf8ff"}  # or written as themselves
    rules = [ICON_RULES, *(f'.{name}::before {{ content: "\\{codes[name]}"; }}\n' for name in shown)]
    for kind, (short, file, weight, name) in ICON_FONTS.items():
        font = ttLib.TTFont(awesome / "webfonts" / f"{file}.ttf")
        cutter = subset.Subsetter(subset.Options(notdef_outline=True))
        cutter.populate(unicodes=wanted)
        cutter.subset(font)
        font.flavor = "woff"
        font.save(cut := io.BytesIO())
        family, source = f'"Font Awesome 6 {name}"', data_url(cut.getvalue(), "woff")
        rules += [
            f"@font-face {{ font-family: {family}; font-weight: {weight}; font-display: block; src: {source}; }}\n",
            f".{short}, .fa-{kind} {{ font-family: {family}; font-weight: {weight}; }}\n",
            f":root {{ --fa-font-{kind}: {weight} 1em/1 {family}; }}\n",
        ]
    return "".join(rules)


def data_url(font: bytes, kind: str) -> str:
    return f'url(data:font/{kind};base64,{base64.b64encode(font).decode()}) format("{kind}")'
