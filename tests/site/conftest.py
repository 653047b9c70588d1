"""The built book, served on this machine, and one Chromium to read it with."""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

HTML = Path(__file__).parents[2] / "_build" / "html"
NAMES = "chromium", "chromium-browser", "google-chrome"
FLAGS = "no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync".split()


@pytest.fixture(scope="session")
def html():
    if not (HTML / "search.html").exists():
        pytest.fail(f"There is no book in {HTML}. Build the book first: make book", pytrace=False)
    return HTML


@pytest.fixture(scope="session")
def url(html):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    """The path of the machine's Chromium."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(
            f"No Chromium: none of {', '.join(NAMES)} is on the path. Install one (Debian: apt-get install chromium; "
            "or .venv/bin/playwright install chromium) and, if it is elsewhere, name it: CHROMIUM=/path/to/chrome",
            pytrace=False,
        )
    return path


@pytest.fixture(scope="session")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS])
        yield browser
        browser.close()
