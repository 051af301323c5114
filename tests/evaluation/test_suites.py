"""Held-out suites against plain computations, on the tiny model."""

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Completion
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import contains_answer
from mixsd_lightning.evaluation.suites import Agreement, BitsPerByte, CrossLikelihood, EverydayProbe, Score, Suite
from mixsd_lightning.evaluation.suites.base import bootstrap_interval, by_group, from_tensors, to_tensors
from mixsd_lightning.evaluation.suites.bits_per_byte import held_out_paragraphs
from mixsd_lightning.evaluation.suites.probe import answer_questions, everyday_questions
from mixsd_lightning.models import add_lora, without_lora

SUITES = [Agreement, BitsPerByte, CrossLikelihood, EverydayProbe]
FEW = everyday_questions()[:: len(everyday_questions()) // 16][:16]


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


def brute_force_agreement(base: PreTrainedModel, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, float]:
    """KL both ways, JSD and top-1 agreement per token along the base's answers."""
    rows = []
    for prompt, completion in zip(*answer_questions(base, encoder, FEW), strict=True):
        ids = prompt + completion.token_ids
        base_LV, model_LV = log_probs(base, ids), log_probs(model, ids)
        for position in range(len(prompt) - 1, len(ids) - 1):
            p, q = base_LV[position].exp(), model_LV[position].exp()
            m = (p + q) / 2
            kl = [float((a * (a / b).log()).sum()) for a, b in ((p, q), (q, p), (p, m), (q, m))]
            rows.append((kl[0], kl[1], (kl[2] + kl[3]) / 2, float(p.argmax() == q.argmax())))
    names = ("kl", "reverse_kl", "jsd", "top1")
    return {name: sum(column) / len(rows) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def test_kept_share_of_a_score_that_should_be_high() -> None:
    assert Score([0.3]).kept(Score([0.6])) == pytest.approx(0.5)


def test_kept_share_of_a_score_that_should_be_low() -> None:
    assert Score([2.0], higher_is_better=False).kept(Score([1.0], higher_is_better=False)) == pytest.approx(0.5)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_kept_share_of_the_base_itself_is_one(higher_is_better: bool) -> None:
    assert Score([0.7], None, higher_is_better).kept(Score([0.7], None, higher_is_better)) == 1


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_kept_share_may_exceed_one(higher_is_better: bool) -> None:
    better, worse = (0.8, 0.4) if higher_is_better else (0.4, 0.8)
    assert Score([better], None, higher_is_better).kept(Score([worse], None, higher_is_better)) == pytest.approx(2)


def test_a_base_that_scores_nothing_has_no_kept_share() -> None:
    assert Score([0.5]).kept(Score([0.0])) is None


def test_a_score_without_a_meaningful_share_has_no_kept_share() -> None:
    assert Score([0.5], has_kept_share=False).kept(Score([1.0])) is None


def test_a_score_is_a_weighted_mean() -> None:
    assert Score([1.0, 0.0], [3, 1]).value == 0.75


def test_the_interval_of_a_kept_share_is_that_of_a_paired_bootstrap() -> None:
    generator = np.random.default_rng(1)
    base = generator.random(200) < 0.6
    student = base & (generator.random(200) < 0.8)
    samples = Score(student.astype(float).tolist()).resampled_kept(Score(base.astype(float).tolist()))
    # Given what the base model can, the student keeps each with the same probability: a binomial rate.
    rate, count = student.sum() / base.sum(), base.sum()
    low, high = bootstrap_interval(samples)
    half = 1.96 * math.sqrt(rate * (1 - rate) / count)
    assert (low, high) == pytest.approx((rate - half, rate + half), abs=0.02)


def test_a_model_that_scores_like_the_base_has_no_uncertainty() -> None:
    values = [1.0, 0.0, 0.0, 1.0]
    assert set(Score(values).resampled_kept(Score(values))) == {1.0}  # samples in which the base has nothing are left out


def test_a_lower_score_that_is_better_keeps_more_in_every_sample() -> None:
    base, student = ([1.0, 2.0], [2.0, 4.0])
    samples = Score(student, [5, 1], higher_is_better=False).resampled_kept(Score(base, [5, 1], higher_is_better=False))
    assert samples == pytest.approx(np.full(1000, 0.5))


def test_groups_have_scores_of_their_own_and_no_kept_share() -> None:
    scores = by_group("x", [1, 0, 1, 1], ["a b", "a b", "c", "c"])
    assert {tag: score.value for tag, score in scores.items()} == {"x": 0.75, "x/a_b": 0.5, "x/c": 1}
    assert [score.has_kept_share for score in scores.values()] == [True, False, False]
    assert list(by_group("x", [1, 0], ["a", "a"])) == ["x"]


def test_scores_come_back_from_disk_as_they_were() -> None:
    scores = {"x": Score([0.1, 2.0], [1.0, 3.0], False, True), "x/y": Score([1.0], None, True, False)}
    found = from_tensors(to_tensors(scores))
    for tag, score in scores.items():
        assert list(found[tag].values) == list(score.values)
        assert found[tag].value == score.value
        assert (found[tag].higher_is_better, found[tag].has_kept_share) == (score.higher_is_better, score.has_kept_share)


def test_text_of_the_users_own(tiny_model: PreTrainedModel, encoder: ChatEncoder, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(held_out_paragraphs()[:2]) + "\n\n\n", encoding="utf-8")
    score = BitsPerByte(str(file)).measure(tiny_model, encoder)["bits_per_byte"]
    whole = BitsPerByte().measure(tiny_model, encoder)["bits_per_byte"]
    assert list(score.values) == list(whole.values)[:2]


@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff\xfe"])
def test_text_that_cannot_be_used_is_reported(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"--retention\.suites: .*text\.txt"):
        BitsPerByte(str(tmp_path / "text.txt"))


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


def test_agreement_asks_questions_of_all_groups_alike() -> None:
    groups = Counter(
        next(q.group for q in everyday_questions() if q.question == text) for text in Agreement().settings["questions"]
    )
    assert sum(groups.values()) == 64
    assert len(groups) == 10
    assert set(groups.values()) == {6, 7}


def test_base_agrees_with_itself(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = Agreement(len(FEW))
    suite.prepare(tiny_model, encoder)
    scores = suite.measure(tiny_model, encoder)
    assert scores["agreement_kl"].value == pytest.approx(0, abs=1e-5)
    assert scores["agreement_top1"].value == 1


def test_base_with_near_ties_agrees_with_itself(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    _, completions = answer_questions(tiny_model, encoder, FEW)
    [(favourite, _)] = Counter(token for c in completions for token in c.token_ids if token > 0).most_common(1)
    with torch.no_grad():
        embedding = tiny_model.get_input_embeddings().weight
        embedding[favourite - 1] = embedding[favourite] * (1 - 1e-5)
    suite = Agreement(len(FEW))
    suite.prepare(tiny_model, encoder)
    assert suite.measure(tiny_model, encoder)["agreement_top1"].value == 1


def test_agreement_equals_brute_force(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = Agreement(len(FEW))
    suite.prepare(tiny_model, encoder)
    moved = perturbed(tiny_model)
    scores = suite.measure(moved, encoder)
    expected = brute_force_agreement(tiny_model, moved, encoder)
    assert expected["kl"] > 0.01
    assert 0 < expected["top1"] < 1
    assert scores["agreement_top1"].value == pytest.approx(expected.pop("top1"), abs=2e-3)
    for name, value in expected.items():
        assert scores[f"agreement_{name}"].value == pytest.approx(value, rel=1e-2)


def test_agreement_falls_as_the_model_moves_away(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = Agreement(len(FEW))
    suite.prepare(tiny_model, encoder)
    near, far = (suite.measure(perturbed(tiny_model, scale), encoder) for scale in (0.01, 0.1))
    assert near["agreement_kl"].value < far["agreement_kl"].value
    assert near["agreement_top1"].value > far["agreement_top1"].value


def brute_force_likelihoods(
    writer: PreTrainedModel, other: PreTrainedModel, encoder: ChatEncoder
) -> tuple[list[float], list[float]]:
    """By question, along the writer's own answer: the other's mean log-probability of it, and the mean JSD of both."""
    log_probabilities, divergences = [], []
    for prompt, completion in zip(*answer_questions(writer, encoder, FEW), strict=True):
        ids = prompt + completion.token_ids
        writer_LV, other_LV = log_probs(writer, ids), log_probs(other, ids)
        found, apart = [], []
        for position in range(len(prompt) - 1, len(ids) - 1):
            found.append(float(other_LV[position, ids[position + 1]]))
            p, q = writer_LV[position].exp(), other_LV[position].exp()
            m = (p + q) / 2
            apart.append(float((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2)
        log_probabilities.append(sum(found) / len(found))
        divergences.append(sum(apart) / len(apart))
    return log_probabilities, divergences


def test_cross_likelihoods_equal_brute_force(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite, moved = CrossLikelihood(len(FEW)), perturbed(tiny_model)
    suite.base_model = lambda: nullcontext(tiny_model)
    suite.prepare(tiny_model, encoder)
    scores = suite.measure(moved, encoder)
    forward, forward_jsd = brute_force_likelihoods(moved, tiny_model, encoder)
    reverse, reverse_jsd = brute_force_likelihoods(tiny_model, moved, encoder)
    expected = {"forward": forward, "forward_jsd": forward_jsd, "reverse": reverse, "reverse_jsd": reverse_jsd}
    expected["gap"] = [one - other for one, other in zip(forward, reverse, strict=True)]
    assert min(forward_jsd) > 1e-3
    assert forward != pytest.approx(reverse, rel=1e-3)
    assert scores.keys() == {f"cross_likelihood_{name}" for name in expected}
    for name, values in expected.items():
        assert list(scores[f"cross_likelihood_{name}"].values) == pytest.approx(values, rel=2e-2, abs=1e-4)


def test_the_base_finds_its_own_answers_as_probable_either_way(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    suite = CrossLikelihood(len(FEW))
    suite.base_model = lambda: nullcontext(tiny_model)
    suite.prepare(tiny_model, encoder)
    scores = suite.measure(tiny_model, encoder)
    assert scores["cross_likelihood_gap"].value == 0
    assert scores["cross_likelihood_forward_jsd"].value == pytest.approx(0, abs=1e-5)
    assert all(score.kept(score) is None for score in scores.values())


def test_an_adapter_is_off_while_its_base_is_asked(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    pytest.importorskip("peft")
    plain = copy.deepcopy(tiny_model)
    add_lora(tiny_model, 2, 4)
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))

    @contextmanager
    def switched_off() -> Iterator[PreTrainedModel]:
        with without_lora(tiny_model):
            yield tiny_model

    suite = CrossLikelihood(len(FEW))
    suite.base_model = switched_off
    with without_lora(tiny_model):
        suite.prepare(tiny_model, encoder)
    scores = suite.measure(tiny_model, encoder)
    other = CrossLikelihood(len(FEW))
    other.base_model = lambda: nullcontext(plain)
    other.prepare(plain, encoder)
    for tag, score in other.measure(tiny_model, encoder).items():
        assert list(scores[tag].values) == pytest.approx(list(score.values), abs=1e-4)
    assert scores["cross_likelihood_forward_jsd"].value > 1e-3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make_suite", SUITES)
def test_measuring_leaves_mode_weights_and_randomness(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, make_suite: Callable[[], Suite], training: bool
) -> None:
    tiny_model.train(training)
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    randomness = torch.get_rng_state()
    suite = make_suite()
    suite.base_model = lambda: nullcontext(tiny_model)
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
    suite.base_model = lambda: nullcontext(tiny_model)
    suite.prepare(tiny_model, encoder)
    scores = suite.measure(tiny_model, encoder)
    assert all(tag == suite.name or tag.startswith((f"{suite.name}_", f"{suite.name}/")) for tag in scores)


def test_probe_counts_right_answers(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = everyday_questions()
    said = ["I do not know" if question.group == "geography" else question.answers[-1] for question in questions]
    completions = [Completion(encoder.target(text), "stop") for text in said]
    monkeypatch.setattr("mixsd_lightning.evaluation.suites.probe.answer_questions", lambda *_: ([], completions))
    suite = EverydayProbe()
    scores = suite.measure(tiny_model, encoder)
    num_wrong = sum(question.group == "geography" for question in questions)
    assert scores["probe"].value == 1 - num_wrong / len(questions)
    assert scores["probe/geography"].value == 0
    assert scores["probe/opposites"].value == 1
    assert [answer.is_right for answer in suite.answers] == [question.group != "geography" for question in questions]
    assert [answer.completion for answer in suite.answers] == said


def test_probe_asks_the_bare_questions(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    prompts, _ = answer_questions(tiny_model, encoder, FEW)
    assert prompts == [encoder.prompt([Message("user", question.question)]) for question in FEW]


def test_everyday_questions_are_many_and_of_many_kinds() -> None:
    groups = Counter(question.group for question in everyday_questions())
    assert set(groups) == {
        "geography",
        "science",
        "arithmetic",
        "opposites",
        "spelling",
        "translation",
        "code reading",
        "common sense",
        "instruction following",
        "everyday knowledge",
    }
    assert min(groups.values()) >= 20
    assert sum(groups.values()) >= 200


def test_everyday_questions_stand_group_by_group() -> None:
    groups = [question.group for question in everyday_questions()]
    assert len(list(groupby(groups))) == len(set(groups))


def test_everyday_questions_and_their_ids_are_unique() -> None:
    questions = everyday_questions()
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.question.casefold() for question in questions}) == len(questions)


def test_everyday_questions_are_short() -> None:
    assert max(len(question.question.split()) for question in everyday_questions()) <= 30


def test_every_everyday_question_has_an_answer_that_it_does_not_give_away() -> None:
    assert all(question.answers and all(map(str.strip, question.answers)) for question in everyday_questions())
    assert [q.id for q in everyday_questions() if contains_answer(q.question, q.answers)] == []


@pytest.mark.builtin_model
def test_builtin_model_answers_some_but_not_all_questions_of_every_group(
    builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder
) -> None:
    some = everyday_questions()[::2]
    _, completions = answer_questions(builtin_model, builtin_encoder, some)
    right: dict[str, list[bool]] = defaultdict(list)
    for question, completion in zip(some, completions, strict=True):
        answer = builtin_encoder.decode(completion.token_ids)
        right[question.group].append(contains_answer(answer, question.answers))
    shares = {group: sum(hits) / len(hits) for group, hits in right.items()}
    assert len(shares) == 10
    assert all(0.25 < share < 0.95 for share in shares.values()), shares
