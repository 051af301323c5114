from pathlib import Path
from typing import Any

import pytest
from made_runs import base_line, config, validation, write_comparison, write_run

from mixsd_lightning.report.collect import find_runs
from mixsd_lightning.report.settings import Corpus, group, show


def grouped(root: Path) -> tuple[list[Corpus], list[str]]:
    return group(find_runs([root])[0])


def labels(root: Path, *configs: dict[str, Any]) -> list[str]:
    for number, settings in enumerate(configs):
        write_run(root / f"run{number}", settings, validation(10 + number, 1.0, 0.9))
    (corpus,), _ = grouped(root)
    return [setting.label for setting in corpus.settings]


def test_runs_that_differ_in_seeds_are_one_setting_and_labels_name_what_differs(tmp_path: Path) -> None:
    (corpus,), notes = grouped(write_comparison(tmp_path))
    assert [(setting.label, len(setting.runs)) for setting in corpus.settings] == [
        ("SFT, learning rate 5e-05", 1),
        ("SFT, learning rate 0.0001", 1),
        ("MixSD, λ 0.1, learning rate 0.0001", 1),
        ("MixSD, λ 0.3, learning rate 0.0001", 3),
        ("MixSD, λ 0.7, learning rate 0.0001", 1),
    ]
    assert corpus.name == "KGFact-Small"
    assert [base.label for base in corpus.bases] == ["base model"]
    assert notes == []
    families = [setting.family for setting in corpus.settings]
    assert families[2] == families[3] == families[4] != families[0]


def test_settings_of_one_method_are_not_compared_with_those_of_another(tmp_path: Path) -> None:
    mixsd = config("MixSD", top_k=64, temperature=0.0)
    opsd = config("OPSD", top_k=0, temperature=1.0)
    assert labels(tmp_path, config("SFT"), mixsd, opsd) == ["SFT", "OPSD", "MixSD"]


def test_labels_name_rates_and_what_is_unusual(tmp_path: Path) -> None:
    usual = {"protect_answer": True, "num_generations": 1}
    found = labels(
        tmp_path,
        config("SFT"),
        config("SFT", learning_rate=0.001, lora_rank=16),
        config("MixSD", **usual),
        config("MixSD", **usual, learning_rate=0.00005),
        config("MixSD", **usual, data__expert_context="recall"),
        config("MixSD", **{**usual, "num_generations": 4}),
        config("MixSD", **{**usual, "protect_answer": False}),
    )
    assert found == [
        "SFT, learning rate 0.0001",
        "SFT, learning rate 0.001, lora_rank 16",
        "MixSD, no protect_answer, learning rate 0.0001",
        "MixSD, learning rate 5e-05",
        "MixSD, learning rate 0.0001",
        "MixSD, learning rate 0.0001, num_generations 4",
        "MixSD, learning rate 0.0001, expert_context recall",
    ]


@pytest.mark.parametrize("value", [False, True])
def test_of_two_that_are_as_common_the_switch_that_is_off_is_not_named(value: bool, tmp_path: Path) -> None:
    found = labels(tmp_path, config("MixSD", protect_answer=value), config("MixSD", protect_answer=not value))
    assert found == ["MixSD", "MixSD, protect_answer"]


def test_seeds_paths_and_what_only_watches_do_not_matter(tmp_path: Path) -> None:
    one = config("MixSD", 1, data__data_dir="/a", trainer__check_val_every_n_epoch=1)
    other = config("MixSD", 2, data__data_dir="/b", trainer__check_val_every_n_epoch=5, trainer__default_root_dir="/c")
    other["data"]["init_args"] |= {"seed": 7, "eval_splits": ["train", "two_hop"]}
    other["ckpt_path"], other["errors"] = "x/last.ckpt", {"num_examples": 9}
    bars = [{"class_path": "lightning.pytorch.callbacks.RichProgressBar"}]
    other["trainer"]["callbacks"] = bars
    one["model"]["init_args"]["model_name_or_path"] = "/home/one/models/tiny"
    other["model"]["init_args"]["model_name_or_path"] = "/mnt/models/tiny/"
    assert labels(tmp_path, one, other) == ["MixSD"]


def test_a_setting_that_an_older_config_does_not_name_has_its_default(tmp_path: Path) -> None:
    new = config("MixSD", 2, protect_answer=False, warmup_steps=20, max_attempts=30, data__num_paraphrases=1)
    new["drift"] |= {"sequences": "held_out", "quadratic": False}
    protected = config("MixSD", 2, protect_answer=True)
    assert labels(tmp_path, config("MixSD"), new, protected) == ["MixSD", "MixSD, protect_answer"]


def test_equal_numbers_are_equal_however_they_are_written(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-4 as text.
    assert labels(tmp_path, config(learning_rate="1e-4"), config("SFT", 2, learning_rate=0.0001)) == ["SFT"]
    assert show(1) == show(1.0) == "1"
    assert show(True) == "true" != show(1)
    assert show(None) == "null"


def test_whatever_else_differs_is_named_and_long_values_are_cut(tmp_path: Path) -> None:
    suites = config()
    suites["retention"]["suites"] = [f"suite_{number}" for number in range(20)]
    stopped = config(trainer__callbacks=[{"class_path": "EarlyStopping"}])
    found = labels(tmp_path, config(), config(data__batch_size=8), suites, stopped)
    assert len(set(found)) == 4
    assert any("batch_size 8" in label for label in found)
    assert any("…" in label for label in found)
    assert max(map(len, found)) < 200
    assert any("EarlyStopping" in label for label in found)


def test_the_same_seeds_twice_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "long", config(), validation(20, 1.0, 0.9))
    write_run(tmp_path / "killed", config(), validation(10, 0.5, 0.9))
    (corpus,), notes = grouped(tmp_path)
    assert [run.name for run in corpus.settings[0].runs] == ["long"]
    assert notes == ["killed has settings and seeds of long; it was left out."]


def test_seeds_that_ended_at_different_steps_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "one", config("SFT", 1), validation(20, 1.0, 0.9))
    write_run(tmp_path / "two", config("SFT", 2), validation(10, 0.5, 0.9))
    _, (note,) = grouped(tmp_path)
    assert note.startswith("Runs of one setting end at different steps: one at 20, two at 10.")


def test_corpora_are_kept_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config("SFT"), validation(1, 1.0, 0.9))
    write_run(tmp_path / "b", config("SFT", corpus="Facts", data__file="/x/rivers.csv"), validation(1, 1.0, 0.9))
    write_run(tmp_path / "c", config("SFT", data__num_entities=4), validation(1, 1.0, 0.9))
    write_run(tmp_path / "<i>d", None, validation(1, 1.0, 0.9))
    corpora, _ = grouped(tmp_path)
    assert [(corpus.name, [setting.label for setting in corpus.settings]) for corpus in corpora] == [
        ("Facts (rivers.csv)", ["SFT"]),
        ("KGFact-Small", ["SFT"]),
        ("KGFact-Small, num_entities=4", ["SFT"]),
        ("corpus not known", ["<i>d"]),
    ]


def test_the_base_model_is_what_runs_measured_before_training(tmp_path: Path) -> None:
    first = base_line()
    write_run(tmp_path / "a", config("SFT", 1), first, validation(1, 1.0, 0.9))
    write_run(tmp_path / "b", config("MixSD", 2), first | {"memorization/two_hop": 0.1}, validation(1, 1.0, 0.9))
    (corpus,), _ = grouped(tmp_path)
    (base,) = corpus.bases
    (line,) = base.lines  # the same questions, whatever the seed of training
    assert line["memorization/two_hop"] == 0.1
    assert "memorization/taught" not in line  # which depends on a run's targets
    assert "targets/accepted" not in line


def test_runs_that_saw_the_base_model_only_give_no_setting(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config("SFT"), base_line())
    (corpus,), (note,) = grouped(tmp_path)
    assert corpus.settings == []
    assert len(corpus.bases) == 1
    assert note == "a has not been validated after training yet; it gives the base model only."


@pytest.mark.parametrize("broken", [{"model": None}, {"model": "MixSD", "data": 3}, {"model": {"class_path": 5}}])
def test_odd_configs_are_no_accident(broken: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "odd", broken, validation(1, 1.0, 0.9))
    (corpus,), _ = grouped(tmp_path)
    assert len(corpus.settings) == 1
