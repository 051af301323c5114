"""The subcommand as a user types it, and every file that it writes."""

import csv
import re
from pathlib import Path

import pytest
from made_runs import base_line, config, validation, write_comparison, write_run

from mixsd_lightning import cli
from mixsd_lightning.report import main, write_report

FILES = ["curves.png", "errors.png", "pareto.png", "report.csv", "report.html", "report.md", "runs.csv"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_report([write_comparison(root / "runs")], root / "out")
    return root / "out"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_there_and_nothing_else(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == FILES
    for name in FILES[:3]:
        assert (report / name).read_bytes().startswith(b"\x89PNG")


def test_the_table_of_settings_has_means_intervals_and_settings(report: Path) -> None:
    found = {row["setting"]: row for row in rows(report / "report.csv")}
    mixsd = found["MixSD, λ 0.3, learning rate 0.0001"]
    assert float(mixsd["retention/kept"]) == pytest.approx(0.91)
    assert float(mixsd["retention/kept_low"]) == pytest.approx(0.91 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)
    assert float(mixsd["targets/accepted_share"]) == pytest.approx(0.93)
    assert mixsd["seeds"] == "3"
    assert mixsd["setting:model.mixing_rate"] == "0.3"
    sft = found["SFT, learning rate 0.0001"]
    assert (sft["targets/accepted_share"], sft["drift/l2_low"], sft["setting:model.mixing_rate"]) == ("", "", "")
    assert float(sft["memorization/train_low"]) == pytest.approx(0.963, abs=1e-3)
    assert found["base model"]["retention/kept"] == "1.0"


def test_the_table_of_runs_has_every_validation(report: Path) -> None:
    found = rows(report / "runs.csv")
    assert len(found) == 2 * 3 + 3 * 3 + 2 * 2
    assert {float(row["step"]) for row in found} == {0, 60, 120}
    assert any("model.mixing_seed 2" in row["seeds"] for row in found)


def test_markdown_has_a_cell_for_every_column(report: Path) -> None:
    text = (report / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    (row,) = [line for line in lines if line.startswith("| SFT, learning rate 5e-05") and "98.0 %" in line]
    assert r"98.0 % \[93, 99\]" in row
    assert all(f"]({name})" in text for name in FILES[:3])


def test_missing_tags_are_empty_cells(tmp_path: Path) -> None:
    write_run(tmp_path / "old", config("SFT"), {"step": 4, "memorization/train": 0.0, "memorization/train_count": 20})
    write_run(tmp_path / "new", config("MixSD"), base_line(), validation(4, 1.0, 0.9))
    write_report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r'<th scope="row" data-value="SFT">SFT</th><td data-value="0.0"[^>]*>0.0 %<small>', page)
    row = re.search(r'<th scope="row" data-value="SFT">.*?</tr>', page)
    assert row is not None
    assert "<td></td>" in row[0]
    assert "nan" not in page.lower()


def test_runs_without_anything_to_draw_still_give_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", None, {"step": 4, "train/loss": 1.0})
    write_report([tmp_path], tmp_path / "out")
    assert "No run has measured memorization" in (tmp_path / "out" / "report.html").read_text()


def test_two_corpora_have_tables_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config("SFT"), base_line(), validation(4, 1.0, 0.8))
    write_run(tmp_path / "b", config("SFT", corpus="Facts", data__file="rivers.csv"), base_line(), validation(4, 1.0, 0.9))
    write_report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall(r"<h2.*?>(.*?)</h2>", page) == ["Facts (rivers.csv)", "KGFact-Small", "What the numbers mean"]
    assert len(re.findall("<h3>Learnt and kept</h3>", page)) == 2


def test_a_report_replaces_an_older_one_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", config(), validation(4, 1.0, 0.8))
    write_report([tmp_path / "run"], tmp_path / "out", "First")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ValueError, match="No space left on device"):
        write_report([tmp_path / "run"], tmp_path / "out", "Second")
    assert "<title>First</title>" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_the_command_writes_tells_and_takes_a_title(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_run(tmp_path / "runs" / "sft", config(), base_line(), validation(4, 1.0, 0.8), tail='{"step"')
    cli.main(["report", "runs", "--title", "A <b> title"])
    printed = capsys.readouterr()
    assert "100.0 % [96, 100]" in printed.out
    assert printed.out.endswith("Report: report/report.html\n")
    assert printed.err == "note: The last line of sft/metrics.jsonl is cut; it was left out.\n"
    assert "<title>A &lt;b&gt; title</title>" in Path("report/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["."], "no run found in '.'"),
        ([], "the following arguments are required: RUNS"),
        (["run", "--output", "file"], "--output: cannot write to 'file' (File exists)"),
        (["run", "--tilte", "x"], "unrecognized arguments: --tilte x"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    if "run" in arguments:
        write_run(Path("run"), config(), base_line())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_subcommands_are_in_the_help_and_have_one_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mixsd_lightning", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    assert all(f"'{name} RUN" in text for name in cli.SUBCOMMANDS)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "python -m mixsd_lightning report" in capsys.readouterr().out


def test_another_subcommand_gets_the_rest_of_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("mixsd_lightning.export.main", calls.append)
    monkeypatch.setattr("sys.argv", ["mixsd_lightning", "export", "run", "out"])
    cli.main()
    assert calls == [["run", "out"]]


def test_a_misspelt_subcommand_is_told_all_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mixsd_lightning", "reprot", "runs"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    choices = "fit, validate, test, predict, report, export, ask"
    assert capsys.readouterr().err == f"error: there is no subcommand 'reprot'; choose from {choices}.\n"
