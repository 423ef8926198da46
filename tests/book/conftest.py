"""Fixtures of the book's tests. A chapter runs once, whoever asks for it."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

from book.engine.runs import Book, run_chapters
from book.engine.site import build_site, read_rows

MINI = Path(__file__).parent / "fixtures" / "mini"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def pytest_collection_modifyitems(items):
    # With pytest-xdist one worker takes them all: they share runs and sites.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("book"))


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """The mini book, executed: (book, chapters, runs)."""
    build = tmp_path_factory.mktemp("mini")
    book = Book(folder=MINI, build=build, results=build / "results")
    chapters = book.chapters()
    return book, chapters, run_chapters(chapters, "smoke", book)


@pytest.fixture(scope="session")
def mini_site(mini):
    """Folder of the mini book's site."""
    book, chapters, runs = mini
    out = book.build / "site"
    build_site(book, chapters, runs, read_rows(book), out)
    return out


@pytest.fixture(scope="session")
def real():
    """The book, executed in smoke: (book, chapters, runs).

    It uses the cache of `make book PROFILE=smoke`, so neither repeats the other.
    """
    book = Book()
    chapters = book.chapters()
    return book, chapters, run_chapters(chapters, "smoke", book)


@pytest.fixture(scope="session")
def real_site(real, tmp_path_factory):
    """Folder of the book's site, built strictly."""
    book, chapters, runs = real
    out = tmp_path_factory.mktemp("real") / "site"
    build_site(book, chapters, runs, read_rows(book), out)
    return out


@pytest.fixture(scope="session")
def serve():
    """serve(folder) -> address of a server on loopback."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. Without one the tests skip, or fail where it is required.

    Not for the session: Playwright keeps an event loop running, and tests of other
    modules in this process have loops of their own.
    """
    candidates = [os.environ.get("SPARSEKIT_CHROMIUM"), *map(shutil.which, BROWSERS)]
    path = next((p for p in candidates if p and Path(p).exists()), None)
    if path is None:
        message = (
            "no chromium found: apt-get install chromium, or name one in "
            "SPARSEKIT_CHROMIUM"
        )
        if os.environ.get("SPARSEKIT_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGS))
        yield chromium
        chromium.close()
