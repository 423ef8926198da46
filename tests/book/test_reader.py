"""What a reader sees, in headless Chromium: the mini book and the real one."""

import pytest

pytestmark = pytest.mark.browser
WIDE, PHONE = 1280, 390


def addresses(site):
    """The pages of a site, relative; not the redirects of the index."""
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    return [p for p in pages if not p.startswith(("_static/", "_sources/"))]


@pytest.fixture(params=["mini_site", "real_site"], ids=["mini", "real"])
def site(request):
    return request.getfixturevalue(request.param)


# Texts that can be seen, with a contrast below what WCAG 2.1 AA asks for: 4.5 : 1, and
# 3 : 1 for large ones. Marks between keys, as in Ctrl+K, are left out.
FAINT = """() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.5) return c.slice(0, 3); } return [255, 255, 255]; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim();
    const e = walk.currentNode.parentElement;
    const seen = {opacityProperty: true, visibilityProperty: true};
    if (!text || !e.checkVisibility(seen) || e.closest(
        "script, style, noscript, svg, .search-button__kbd-shortcut")) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    const a = light(parse(style.color).slice(0, 3)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (large ? 3 : 4.5))
      faint.push(`${ratio.toFixed(1)}: ${text.slice(0, 40)} (${e.className})`);
  }
  return faint; }"""
# What a screen reader has no words for.
NAMELESS = """() => [...document.querySelectorAll(
    "main :is(img, a, button, input, select)")].filter(e => e.checkVisibility()
  && ![e.alt, e.textContent, e.ariaLabel, e.title, e.labels?.[0]?.innerText,
       e.querySelector("svg title, img[alt]")?.outerHTML].some(name => name?.trim()))
  .map(e => e.outerHTML.slice(0, 80))"""


# How light the ground is that elements stand on, 0 to 255.
GROUND = """selector => [...document.querySelectorAll(selector)].map(e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
    if (c.length < 4 || c[3] > 0.5) return (c[0] + c[1] + c[2]) / 3; }
  return 255; })"""


class Visit:
    """A page of a browser that writes down everything that goes wrong."""

    def __init__(self, browser, base, width=WIDE, scheme="light"):
        self.base = base
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.problems = []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda e: self.problems.append(f"error: {e}"))
        self.page.on("request", self.follow)
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed {r.url}"))

    def hear(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def follow(self, request):
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.problems.append(f"left the site: {request.url}")

    def open(self, path):
        self.page.goto(self.base + path, wait_until="networkidle")
        return self.page

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_load_without_a_complaint(site, serve, browser, scheme):
    with Visit(browser, serve(site), scheme=scheme) as visit:
        for path in addresses(site):
            page = visit.open(path)
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
            n_formulas = page.locator(".math").count()
            if n_formulas:
                page.wait_for_function(
                    "n => document.querySelectorAll('mjx-container').length >= n",
                    arg=n_formulas,
                )
            assert page.locator("mjx-container").count() == n_formulas, path
            assert page.locator("mjx-merror, [data-mjx-error]").count() == 0, path
            broken = page.evaluate(
                "[...document.images].filter(i => i.complete && !i.naturalWidth)"
                ".map(i => i.src)"
            )
            assert broken == [], path
            page.add_style_tag(content="* { transition: none !important }")
            assert page.evaluate(FAINT) == [], path
            assert page.evaluate(NAMELESS) == [], path
            for light in page.evaluate(GROUND, ".cell_output table td"):
                assert (light < 60) is (scheme == "dark"), path
            assert visit.problems == [], path


def test_faint_and_nameless_things_are_found(serve, browser, tmp_path):
    (tmp_path / "a.html").write_text(
        """<body style="background: white"><main>
        <p style="color: #767676">4.5</p><p style="color: #777777">4.4</p>
        <h1 style="color: #949494; font-size: 24px">3.03</h1>
        <p style="color: #eee; display: none">hidden</p>
        <p style="background: black; color: white">inverse</p>
        <img src="data:,"><img src="data:," alt="a dot"><a href="#"></a>
        <label>name <input></label><input>
        <button><svg><title>Copy</title></svg></button>"""
    )
    with Visit(browser, serve(tmp_path)) as visit:
        page = visit.open("a.html")
        assert page.evaluate(FAINT) == ["4.5: 4.4 ()"]  # 4.48
        assert len(page.evaluate(NAMELESS)) == 3


def test_pages_fit_a_phone(site, serve, browser):
    with Visit(browser, serve(site), width=PHONE) as visit:
        for path in addresses(site):
            page = visit.open(path)
            wide = page.evaluate(
                """width => [...document.querySelectorAll('main *')].filter(e =>
                  e.getBoundingClientRect().right > width + 1
                  && !e.closest('pre, .cell_output, mjx-container, .math,'
                    + '.pst-scrollable-table-container, .table-wrapper')
                  && getComputedStyle(e).visibility === 'visible'
                ).map(e => e.outerHTML.slice(0, 80)).slice(0, 5)""",
                PHONE,
            )
            scroll = page.evaluate("document.documentElement.scrollWidth")
            assert scroll <= PHONE, (path, wide)


def test_dark_page_is_dark_and_its_text_light(mini_site, serve, browser):
    lightness = """selector => {
      const s = getComputedStyle(document.querySelector(selector));
      const mean = c => c.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
      return [mean(s.backgroundColor), mean(s.color)]; }"""
    for scheme, dark in (("light", False), ("dark", True)):
        with Visit(browser, serve(mini_site), scheme=scheme) as visit:
            page = visit.open("chapters/tiny.html")
            background, text = page.evaluate(lightness, "body")
            assert (background < 60) is dark
            assert (text > 180) is dark
            figure = page.evaluate(
                "getComputedStyle(document.querySelector('figure img')).backgroundColor"
            )
            assert figure == "rgba(0, 0, 0, 0)"  # drawn for both, on no background


@pytest.mark.parametrize(
    ("name", "word", "page"),
    [
        ("mini_site", "half-width", "A tiny chapter"),
        ("real_site", "interval", "How to read intervals"),
    ],
)
def test_search_finds_a_page(request, serve, browser, name, word, page):
    site = request.getfixturevalue(name)
    with Visit(browser, serve(site)) as visit:
        opened = visit.open(f"search.html?q={word}")
        opened.wait_for_selector("#search-results ul.search li a")
        found = opened.locator("#search-results ul.search li a").all_inner_texts()
        assert any(page in title for title in found), found
        assert visit.problems == []


def shown_rows(page):
    """(verdict, first words of the paper) of the rows that can be seen."""
    return page.evaluate(
        """() => [...document.querySelectorAll('table.scoreboard tbody tr')]
          .filter(row => row.offsetParent !== null)
          .map(row => [row.querySelector('.verdict').textContent.trim(),
                       row.cells[1].innerText])"""
    )


def test_the_scoreboard_filters_and_sorts_by_keyboard(real_site, serve, browser):
    with Visit(browser, serve(real_site)) as visit:
        page = visit.open("scoreboard.html")
        everything = shown_rows(page)
        assert page.locator(".scoreboard-controls").count() == 1
        page.get_by_label("Find", exact=True).focus()
        page.keyboard.type("dass")
        assert [paper[:2] for _, paper in shown_rows(page)] == ["2."]
        assert page.locator(".scoreboard-controls output").inner_text() == (
            f"1 of {len(everything)} rows"
        )
        page.get_by_role("button", name="Reset").press("Enter")
        page.wait_for_function(
            "n => document.querySelector('.scoreboard-controls output')"
            ".value.startsWith(`${n} of`)",
            arg=len(everything),
        )
        assert shown_rows(page) == everything
        page.get_by_label("Verdict", exact=True).select_option("planned")
        assert {verdict for verdict, _ in shown_rows(page)} == {"planned"}
        page.get_by_label("Verdict", exact=True).select_option("all")
        paper = page.locator("table.scoreboard th button", has_text="paper").first
        paper.press("Enter")
        header = page.locator("table.scoreboard th").nth(1)
        assert header.get_attribute("aria-sort") == "ascending"
        first = page.locator("table.scoreboard").first

        def numbers():
            texts = first.locator("tbody tr td:nth-child(2)").all_inner_texts()
            return [int(text.split(".")[0]) for text in texts]

        assert numbers() == sorted(numbers())
        assert set(numbers()) == set(range(1, 46))
        paper.press("Enter")
        assert header.get_attribute("aria-sort") == "descending"
        assert numbers() == sorted(numbers(), reverse=True)
        assert visit.problems == []


def test_the_scoreboard_is_whole_without_scripts(real_site, serve, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(serve(real_site) + "scoreboard.html")
    rows = page.locator("table.scoreboard").first.locator("tbody tr")
    papers = {
        text.split(".")[0] for text in rows.locator("td:nth-child(2)").all_inner_texts()
    }
    assert papers == {str(n) for n in range(1, 46)}
    assert page.locator(".scoreboard-controls").count() == 0
    context.close()


def test_a_dark_page_is_printed_in_light_colours(mini_site, serve, browser):
    with Visit(browser, serve(mini_site), scheme="dark") as visit:
        for path in ("chapters/tiny.html", "scoreboard.html"):
            page = visit.open(path)
            page.emulate_media(media="print", color_scheme="dark")
            page.wait_for_function("document.documentElement.dataset.theme === 'light'")
            page.add_style_tag(content="* { transition: none !important }")
            assert page.evaluate(FAINT) == [], path
            for pressed in (".scoreboard-controls", ".copybtn", ".toggle-button"):
                assert not page.locator(f"{pressed}:visible").count(), path
            page.emulate_media(media="screen", color_scheme="dark")
            page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        assert visit.problems == []


def test_solution_unfolds_and_menu_opens_on_a_phone(mini_site, serve, browser):
    with Visit(browser, serve(mini_site), width=PHONE) as visit:
        page = visit.open("chapters/tiny.html")
        solution = page.get_by_text("About four")
        assert not solution.is_visible()
        page.locator(".solution button.toggle-button").first.click()
        solution.wait_for(state="visible")
        link = page.locator(".bd-sidebar-primary").get_by_text("References")
        assert not link.is_visible() or not in_view(link, PHONE)
        page.locator("button.primary-toggle:visible").first.click()
        link.first.wait_for(state="visible")
        assert visit.problems == []


def in_view(locator, width):
    box = locator.first.bounding_box()
    return box is not None and 0 <= box["x"] < width
