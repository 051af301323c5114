from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import PreTrainedModel

from mixsd_lightning import SFT, KGFact, Retention
from mixsd_lightning.callbacks.retention import is_last_validation
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import Score, Suite


class NormSuite(Suite):
    """Scores a model by its final norm, so that the right value is known."""

    name = "norm"

    def __init__(self, every_n_validations: int = 1, setting: int = 0) -> None:
        super().__init__(every_n_validations)
        self.setting = setting
        self.num_measured = 0

    @property
    def settings(self) -> dict[str, int]:
        return {"setting": self.setting}

    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        self.num_measured += 1
        torch.rand(1)  # a suite may draw
        values = model.model.norm.weight.detach()[:4].tolist()
        return {self.name: Score(values), "ungraded": Score(values, has_kept_share=False)}


class InverseSuite(NormSuite):
    """The same, lower being better."""

    name = "inverse"

    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        (score, _) = super().measure(model, encoder).values()
        return {self.name: Score(score.values, higher_is_better=False)}


class SeldomSuite(InverseSuite):
    """A third one."""

    name = "seldom"


@pytest.fixture
def method(tiny_model_path: str) -> SFT:
    method = SFT(tiny_model_path)
    method.configure_model()
    return method


def test_shares_are_relative_to_the_base_and_agreement_is_not_averaged_in(method: SFT) -> None:
    retention = Retention([NormSuite(), InverseSuite()])
    retention.measure_base(method)
    with torch.no_grad():
        method.student.model.norm.weight.fill_(0.8)
    method.completed_steps = 1
    tags = retention.measure(method, retention.suites)
    assert tags == pytest.approx(
        {
            "retention/norm": 0.8,
            "retention/norm/kept": 0.8,
            "retention/norm/kept_low": 0.8,
            "retention/norm/kept_high": 0.8,
            "retention/ungraded": 0.8,
            "retention/inverse": 0.8,
            "retention/inverse/kept": 1.25,
            "retention/inverse/kept_low": 1.25,
            "retention/inverse/kept_high": 1.25,
            "retention/kept": (0.8 + 1.25) / 2,
            "retention/kept_low": (0.8 + 1.25) / 2,
            "retention/kept_high": (0.8 + 1.25) / 2,
        }
    )


def test_the_interval_is_wide_where_examples_differ(method: SFT) -> None:
    retention = Retention([NormSuite()])
    retention.measure_base(method)
    with torch.no_grad():
        method.student.model.norm.weight[:2] = 0
    method.completed_steps = 1
    tags = retention.measure(method, retention.suites)
    assert tags["retention/kept"] == 0.5
    assert tags["retention/kept_low"] == 0
    assert tags["retention/kept_high"] == 1


def test_before_the_first_step_everything_is_kept(method: SFT) -> None:
    retention = Retention()
    retention.measure_base(method)
    tags = retention.measure(method, retention.suites)
    assert tags["retention/kept"] == tags["retention/kept_low"] == tags["retention/kept_high"] == 1
    assert tags["retention/agreement_top1"] == 1
    assert tags["retention/agreement_kl"] == pytest.approx(0, abs=1e-5)


def test_after_steps_the_base_is_loaded_afresh(method: SFT) -> None:
    with torch.no_grad():
        method.student.model.norm.weight.fill_(0.5)
    method.completed_steps = 3
    retention = Retention([NormSuite()])
    retention.measure_base(method)
    assert retention.measure(method, retention.suites)["retention/kept"] == pytest.approx(0.5)


def test_the_base_is_measured_once_for_every_suite_with_its_settings(method: SFT) -> None:
    again, other = NormSuite(), NormSuite(setting=1)
    for suite, expected in ((NormSuite(), 1), (again, 0), (other, 1)):
        retention = Retention([suite])
        retention.measure_base(method)
        assert suite.num_measured == expected
        assert retention.measure(method, [suite])["retention/norm"] == 1


def test_another_model_is_measured_anew(method: SFT) -> None:
    Retention([NormSuite()]).measure_base(method)
    with torch.no_grad():
        method.student.model.norm.weight.fill_(0.5)  # before the first step the student is the base
    suite = NormSuite()
    Retention([suite]).measure_base(method)
    assert suite.num_measured == 1


def test_measuring_leaves_randomness_as_it_was(method: SFT) -> None:
    retention = Retention([NormSuite()])
    method.completed_steps = 1
    state = torch.get_rng_state()
    retention.measure_base(method)
    retention.measure(method, retention.suites)
    assert torch.equal(torch.get_rng_state(), state)


def test_suites_are_chosen_by_name_or_made() -> None:
    assert [suite.name for suite in Retention(["bits_per_byte", NormSuite()]).suites] == ["bits_per_byte", "norm"]
    with pytest.raises(UserError, match=r"--retention.suites: there is no suite 'probes'; choose from probe"):
        Retention(["probes"])
    with pytest.raises(UserError, match=r"--retention.suites: 'norm' is there twice"):
        Retention([NormSuite(), NormSuite()])


class Watch(Callback):
    """Remembers after each validation how often suites were measured, and whether it was said to be the last."""

    def __init__(self, suites: list[NormSuite]) -> None:
        self.suites = suites
        self.counts: list[list[int]] = []
        self.is_last: list[bool] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.is_last.append(is_last_validation(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.counts.append([suite.num_measured for suite in self.suites])


@pytest.mark.parametrize(
    ("options", "counts", "last"),
    [
        # The base takes the first measurement of each.
        ({"max_epochs": 4}, [[2, 1, 1], [3, 2, 1], [4, 2, 1], [5, 3, 2]], [False, False, False, True]),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, [[2, 1, 1], [3, 2, 2]], [False, True]),
        ({"max_steps": 5, "max_epochs": -1}, [[2, 1, 1], [3, 2, 2]], [False, True]),
        ({"max_steps": 4, "max_epochs": -1}, [[2, 1, 1], [3, 2, 2]], [False, True]),
        ({"max_epochs": 1, "val_check_interval": 1}, [[2, 1, 1], [3, 2, 2]], [False, True]),
    ],
)
def test_expensive_suites_are_measured_seldom_and_at_the_last_validation(
    tiny_model_path: str, tmp_path: Path, options: dict[str, Any], counts: list[list[int]], last: list[bool]
) -> None:
    suites = [NormSuite(1), InverseSuite(2), SeldomSuite(0)]
    watch = Watch(suites)
    corpus = KGFact(num_domains=2, num_entities=8, batch_size=4, eval_splits=["train"])
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
        callbacks=[Retention(suites), watch],
        **options,
    )
    trainer.fit(SFT(tiny_model_path, max_new_tokens=2), corpus)
    assert watch.is_last == last
    assert watch.counts == counts
