"""Held-out suites against plain computations, on the tiny model."""

import copy
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.evaluation.scoring import contains_answer
from mixsd_lightning.evaluation.suites import Agreement, BitsPerByte, EverydayProbe, Score, Suite
from mixsd_lightning.evaluation.suites.bits_per_byte import held_out_paragraphs
from mixsd_lightning.evaluation.suites.probe import answer_questions, everyday_questions

SUITES = [Agreement, BitsPerByte, EverydayProbe]


def perturbed(model: PreTrainedModel, scale: float = 0.02) -> PreTrainedModel:
    """A copy of ``model`` with a little noise on its weights."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return moved


@torch.no_grad()
def log_probs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of every next token ``[L, V]``, in double precision after the forward."""
    return model.eval()(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def brute_force_agreement(base: PreTrainedModel, model: PreTrainedModel, encoder: ChatEncoder) -> tuple[float, float]:
    """KL(base || model) per token and top-1 agreement along the base's answers."""
    kl: list[float] = []
    same: list[bool] = []
    for prompt, completion in zip(*answer_questions(base, encoder), strict=True):
        ids = prompt + completion.token_ids
        base_LV, model_LV = log_probs(base, ids), log_probs(model, ids)
        for position in range(len(prompt) - 1, len(ids) - 1):
            p, q = base_LV[position], model_LV[position]
            kl.append(float((p.exp() * (p - q)).sum()))
            same.append(bool(p.argmax() == q.argmax()))
    return sum(kl) / len(kl), sum(same) / len(same)


def test_kept_share_of_a_score_that_should_be_high() -> None:
    assert Score(0.3).kept(Score(0.6)) == pytest.approx(0.5)


def test_kept_share_of_a_score_that_should_be_low() -> None:
    assert Score(2.0, higher_is_better=False).kept(Score(1.0, higher_is_better=False)) == pytest.approx(0.5)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_kept_share_of_the_base_itself_is_one(higher_is_better: bool) -> None:
    assert Score(0.7, higher_is_better).kept(Score(0.7, higher_is_better)) == 1


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_kept_share_may_exceed_one(higher_is_better: bool) -> None:
    better, worse = (0.8, 0.4) if higher_is_better else (0.4, 0.8)
    assert Score(better, higher_is_better).kept(Score(worse, higher_is_better)) == pytest.approx(2)


def test_a_base_that_scores_nothing_has_no_kept_share() -> None:
    assert Score(0.5).kept(Score(0.0)) is None


def test_a_score_without_a_meaningful_share_has_no_kept_share() -> None:
    assert Score(0.5, has_kept_share=False).kept(Score(1.0)) is None


def test_bits_per_byte_equals_a_plain_computation(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    bits, num_bytes = 0.0, 0
    for paragraph in held_out_paragraphs():
        text = encoder.tokenizer(paragraph, add_special_tokens=False)["input_ids"]
        predicted_LV = log_probs(tiny_model, [encoder.tokenizer.bos_token_id, *text])
        bits -= sum(float(predicted_LV[position, token]) for position, token in enumerate(text)) / math.log(2)
        num_bytes += len(paragraph.encode("utf-8"))
    score = BitsPerByte().measure(tiny_model, encoder)["bits_per_byte"]
    assert score.value == pytest.approx(bits / num_bytes, rel=1e-5)
    assert not score.higher_is_better


def test_held_out_text_is_24_different_paragraphs() -> None:
    paragraphs = held_out_paragraphs()
    assert len(paragraphs) == len(set(paragraphs)) == 24
    assert min(map(len, paragraphs)) > 100


def test_base_agrees_with_itself(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = Agreement()
    suite.prepare(tiny_model, encoder)
    scores = suite.measure(tiny_model, encoder)
    assert scores["agreement_kl"].value == pytest.approx(0, abs=1e-5)
    assert scores["agreement_top1"].value == 1


def test_base_with_near_ties_agrees_with_itself(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    _, completions = answer_questions(tiny_model, encoder)
    [(favourite, _)] = Counter(token for c in completions for token in c.token_ids if token > 0).most_common(1)
    with torch.no_grad():
        embedding = tiny_model.get_input_embeddings().weight
        embedding[favourite - 1] = embedding[favourite] * (1 - 1e-5)
    suite = Agreement()
    suite.prepare(tiny_model, encoder)
    assert suite.measure(tiny_model, encoder)["agreement_top1"].value == 1


def test_agreement_equals_brute_force(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = Agreement()
    suite.prepare(tiny_model, encoder)
    moved = perturbed(tiny_model)
    scores = suite.measure(moved, encoder)
    kl, top1 = brute_force_agreement(tiny_model, moved, encoder)
    assert kl > 0.01
    assert 0 < top1 < 1
    assert scores["agreement_kl"].value == pytest.approx(kl, rel=1e-2)
    assert scores["agreement_top1"].value == pytest.approx(top1, abs=2e-3)


def test_agreement_falls_as_the_model_moves_away(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = Agreement()
    suite.prepare(tiny_model, encoder)
    near, far = (suite.measure(perturbed(tiny_model, scale), encoder) for scale in (0.01, 0.1))
    assert near["agreement_kl"].value < far["agreement_kl"].value
    assert near["agreement_top1"].value > far["agreement_top1"].value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make_suite", SUITES)
def test_measuring_leaves_mode_weights_and_randomness(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, make_suite: Callable[[], Suite], training: bool
) -> None:
    tiny_model.train(training)
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    randomness = torch.get_rng_state()
    suite = make_suite()
    suite.prepare(tiny_model, encoder)
    suite.measure(tiny_model, encoder)
    assert {module.training for module in tiny_model.modules()} == {training}
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny_model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randomness)


@pytest.mark.parametrize("make_suite", SUITES)
def test_tags_start_with_the_suites_name(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, make_suite: Callable[[], Suite]
) -> None:
    suite = make_suite()
    suite.prepare(tiny_model, encoder)
    scores = suite.measure(tiny_model, encoder)
    assert all(tag == suite.name or tag.startswith(f"{suite.name}_") for tag in scores)


def test_probe_counts_right_answers(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, completions = answer_questions(tiny_model, encoder)
    for question, completion in zip(everyday_questions(), completions, strict=True):
        completion.token_ids = encoder.target("I do not know" if question.group == "geography" else question.answers[-1])
    monkeypatch.setattr(
        "mixsd_lightning.evaluation.suites.probe.answer_questions", lambda model, encoder: (prompts, completions)
    )
    assert EverydayProbe().measure(tiny_model, encoder)["probe"].value == 56 / 64


def test_probe_asks_the_bare_questions(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    prompts, _ = answer_questions(tiny_model, encoder)
    assert prompts[0] == encoder.prompt([Message("user", everyday_questions()[0].question)])
    assert len(prompts) == len(everyday_questions())


def test_everyday_questions_are_many_and_of_many_kinds() -> None:
    groups = Counter(question.group for question in everyday_questions())
    assert sum(groups.values()) >= 60
    assert len(groups) >= 8


def test_everyday_questions_and_their_ids_are_unique() -> None:
    questions = everyday_questions()
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.question for question in questions}) == len(questions)


def test_every_everyday_question_has_an_answer_that_it_does_not_give_away() -> None:
    assert all(question.answers and all(question.answers) for question in everyday_questions())
    assert [q.id for q in everyday_questions() if contains_answer(q.question, q.answers)] == []
