import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning import SFT, Retention
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import Score, Suite


class NormSuite(Suite):
    """Scores a model by its final norm, so that the right value is known."""

    name = "norm"

    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        mean = float(model.model.norm.weight.mean())
        return {self.name: Score(mean), "ungraded": Score(mean, has_kept_share=False)}


class InverseSuite(NormSuite):
    """The same, lower being better."""

    name = "inverse"

    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        return {self.name: Score(float(model.model.norm.weight.mean()), higher_is_better=False)}


@pytest.fixture
def method(tiny_model_path: str) -> SFT:
    method = SFT(tiny_model_path)
    method.configure_model()
    return method


def test_shares_are_relative_to_the_base_and_agreement_is_not_averaged_in(method: SFT) -> None:
    retention = Retention()
    retention.suites = (NormSuite(), InverseSuite())
    retention.measure_base(method)
    with torch.no_grad():
        method.student.model.norm.weight.fill_(0.8)
    method.completed_steps = 1
    tags = retention.measure(method)
    assert tags == pytest.approx(
        {
            "retention/norm": 0.8,
            "retention/norm/kept": 0.8,
            "retention/ungraded": 0.8,
            "retention/inverse": 0.8,
            "retention/inverse/kept": 1.25,
            "retention/kept": (0.8 + 1.25) / 2,
        }
    )


def test_before_the_first_step_everything_is_kept(method: SFT) -> None:
    retention = Retention()
    retention.measure_base(method)
    tags = retention.measure(method)
    assert tags["retention/kept"] == 1
    assert tags["retention/agreement_top1"] == 1
    assert tags["retention/agreement_kl"] == pytest.approx(0, abs=1e-5)


def test_after_steps_the_base_is_loaded_afresh(method: SFT) -> None:
    with torch.no_grad():
        method.student.model.norm.weight.fill_(0.5)
    method.completed_steps = 3
    retention = Retention()
    retention.suites = (NormSuite(),)
    retention.measure_base(method)
    assert retention.measure(method)["retention/kept"] == pytest.approx(0.5)


def test_suites_are_chosen_by_name() -> None:
    assert [suite.name for suite in Retention(["bits_per_byte"]).suites] == ["bits_per_byte"]
    with pytest.raises(UserError, match="--retention.suites: there is no suite 'probes'; choose from probe"):
        Retention(["probes"])
