"""The page: escaped, without requests, and sorted in a browser where there is one."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import base_line, config, validation, write_comparison, write_run
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from mixsd_lightning.report import write_report
from mixsd_lightning.report.collect import find_runs
from mixsd_lightning.report.figures import COLOURS, draw_curve, looks
from mixsd_lightning.report.settings import group

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<img src=x onerror=\"document.title='evil'\">'&$x_1$ | `</script><script>document.title='evil'</script>"


class Tags(HTMLParser):
    """Tags and attributes of a page, and whether it is well nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    write_report([write_comparison(root / "runs")], root / "out")
    return (root / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on runs whose every text is an attack: settings, labels, names of folders, tags, file of the corpus."""
    root = tmp_path_factory.mktemp("evil")
    for number in range(2):
        settings = config(f"Evil{EVIL}", corpus=f"Bad{EVIL}", model_name_or_path=f"{EVIL}{number}", data__file=EVIL)
        settings["model"]["init_args"][EVIL] = [EVIL, number]
        more = {
            f"memorization/{EVIL}": 0.5,
            f"memorization/{EVIL}_count": 4,
            f"errors/{EVIL}/{EVIL}": 0.2,
            f"retention/{EVIL}/kept": 0.1,
        }
        write_run(
            root / "runs" / f"{EVIL.replace('/', '∕')}{number}", settings, base_line() | more, validation(4, 1.0, 0.8) | more
        )
    write_run(root / "runs" / "=cmd|'<script>1</script>'".replace("/", "∕"), None, validation(4, 1.0, 0.8))
    write_report([root / "runs"], root / "out", EVIL)
    return root / "out"


def test_the_page_is_well_formed_and_asks_for_nothing(page: str) -> None:
    read = Tags(page)
    assert read.open == []
    names = [name for name, _ in read.tags]
    assert names.count("script") == 1
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(names)
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", page)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)
    assert {one or other for one, other in used} <= set(ids)


def test_figures_take_the_colours_of_the_page(page: str) -> None:
    for drawing in re.findall(r'<svg viewBox="[^"]+" role="img".*?</svg>', page, re.DOTALL):
        assert "currentColor" in drawing
        assert not re.search("|".join(COLOURS), drawing)
        assert "#000000" not in drawing
        assert "#ffffff" not in drawing
    assert len(re.findall('role="img"', page)) == 5  # pareto, three curves, wrong answers


def test_settings_have_looks_of_their_own_and_a_curve_has_one_colour(tmp_path: Path) -> None:
    corpus = group(find_runs([write_comparison(tmp_path)])[0])[0][0]
    look = looks(corpus)
    assert len({(one.colour, one.marker) for one in look.values()}) == 6
    assert len({one.colour for label, one in look.items() if label.startswith("MixSD")}) == 1
    assert len({one.colour for one in look.values()}) == 4


def test_a_curve_begins_at_the_base_model_that_another_run_has_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(), base_line(), validation(8, learnt=1.0, kept=0.8))
    write_run(tmp_path / "b", config("MixSD"), validation(8, learnt=0.9, kept=0.9))
    axes = Figure().subplots()
    draw_curve(axes, group(find_runs([tmp_path])[0])[0][0], "retention/kept", "")
    assert sorted(tuple(line.get_ydata()) for line in axes.lines) == [(1.0, 0.8), (1.0, 0.9)]
    assert {tuple(line.get_xdata()) for line in axes.lines} == {(0, 8)}


def test_every_setting_of_every_run_is_there_what_differs_first(page: str) -> None:
    details = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    assert len(details) == 5
    (mixsd,) = [one for one in details if "<summary>MixSD, λ 0.3" in one]
    names = re.findall(r'<tr( class="differs")?><th scope="row">(.*?)</th><td>(.*?)</td>', mixsd)
    assert names[:2] == [
        (' class="differs"', "model.mixing_rate", "0.3"),
        (' class="differs"', "model.learning_rate", "0.0001"),
    ]
    assert ("", "trainer.max_epochs", "20") in names
    assert mixsd.count("model.mixing_seed") == 3


def test_every_column_is_explained(page: str) -> None:
    for label in re.findall(r'<button type="button">(.*?)</button>', page):
        assert label in ("setting", "seeds") or f"<dt>{label}</dt>" in page


def test_texts_from_files_are_inert(evil: Path) -> None:
    page = (evil / "report.html").read_text()
    read = Tags(page)
    names = [name for name, _ in read.tags]
    assert names.count("script") == 1
    assert "img" not in names
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert "&lt;img src=x" in page
    markdown = (evil / "report.md").read_text()
    assert "<img" not in markdown
    assert "<script" not in markdown
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    expected = {"h1", "h2", "h3", "p", "strong", "img", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert set(re.findall(r"<(\w+)", html)) == expected
    assert set(re.findall(r'src="([^"]*)"', html)) == {"pareto.png", "curves.png", "errors.png"}
    assert "href" not in html
    assert not re.search(r"^=|,=|\n=", (evil / "runs.csv").read_text())


ODD = [
    "\x1b[31mred\x07",
    "a\u202eb",
    "\x00",
    "\ufeff",
    "$\\frac{1}{",
    "$$",
    "^_{",
    "%d %s {x} ${y}",
    "\U0001f600",
    "]]>",
    "&#0;",
    "x" * 5000,
]


def test_odd_names_are_shown_or_left_out(tmp_path: Path) -> None:
    for number, text in enumerate(("".join(ODD), ODD[4])):
        settings = config("SFT", model_name_or_path=f"{text}{number}", data__file=text.replace("\0", ""))
        more = {f"memorization/{text}": 0.5, f"memorization/{text}_count": 4, f"errors/{text}/x": 0.2}
        folder = tmp_path / "runs" / f"{number}{text[:40]}".replace("\0", "").replace("/", "")
        write_run(folder, settings, base_line() | more, validation(4, 1.0, 0.8) | more)
    undecodable = os.fsdecode(b"\xff\xfe run")
    try:
        write_run(tmp_path / "runs" / undecodable, config("MixSD"), base_line(), validation(4, 1.0, 0.8))
    except OSError:
        pytest.skip("this system has no names of files that are no text")
    write_report([tmp_path / "runs"], tmp_path / "out", "\x1b[31m")
    for name in ("report.html", "report.md", "report.csv", "runs.csv"):
        written = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert not [letter for letter in set(written) if not letter.isprintable() and letter != "\n"], name


def browse(page: str, path: Path, script: str = "") -> str:
    """The document after the page has run in Chromium, without its own policy, which would not let ``script`` run."""
    page = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"<script>{script}</script></body>")
    path.write_text(page)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}", "--dump-dom"]
    return subprocess.run(
        [str(CHROMIUM), *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_nothing_from_files_runs_in_a_browser(evil: Path, tmp_path: Path) -> None:
    dumped = browse((evil / "report.html").read_text(), tmp_path / "page.html", "document.body.dataset.title = document.title")
    assert 'data-title="&lt;img' in dumped or 'data-title="<img' in dumped


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_click_sorts_and_another_turns_around(page: str, tmp_path: Path) -> None:
    script = """
      const table = document.querySelector("table"), seen = [];
      const heads = Array.from(table.tHead.rows[0].cells);
      function press(name) {
        const head = heads.find((cell) => cell.textContent === name);
        head.querySelector("button").click();
        const names = Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent + "=" + row.cells[head.cellIndex].dataset.value);
        seen.push([name, heads.map((cell) => cell.getAttribute("aria-sort")).join(), ...names].join(";"));
      }
      for (const name of ["kept (mean)", "kept (mean)", "KL from base", "right: taught", "right: taught", "setting"]) press(name);
      document.body.dataset.seen = seen.join("|");
    """
    dumped = browse(page, tmp_path / "page.html", script)
    found = re.search(r'data-seen="([^"]*)"', dumped)
    assert found is not None
    sorted_by = [part.split(";") for part in found[1].split("|")]
    values = [[row.rpartition("=")[2] for row in rows] for _, _, *rows in sorted_by]
    numbers = [[float(value) for value in column if value != "undefined"] for column in values[:5]]
    assert len(numbers[0]) == 6
    assert numbers[0] == sorted(numbers[0], reverse=True)
    assert numbers[1] == sorted(numbers[1])
    assert numbers[2] == sorted(numbers[2])  # less is better, so that comes first
    assert all("undefined" not in column[: len(given)] for column, given in zip(values, numbers, strict=False))
    assert [states.split(",").count("none") for _, states, *_ in sorted_by] == [len(sorted_by[0][1].split(",")) - 1] * 6
    assert "descending" in sorted_by[0][1]
    assert "ascending" in sorted_by[1][1]
    assert sorted_by[5][2].startswith("base model")
