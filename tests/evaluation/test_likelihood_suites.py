"""Suites that compare probabilities, against one plain forward for every text."""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.decoding.log_probs import ContinuationScore
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import HellaSwag, Lambada, MultipleChoice, Suite
from mixsd_lightning.evaluation.suites.continuations import encode_continuations, score_texts
from mixsd_lightning.evaluation.suites.hellaswag import clean

WORDS = ["sun", "rain", "river", "stone", "bread", "wolf", "winter", "seven", "green", "slow", "above", "never"]


def sentence(rng: random.Random, most_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most_words)))


def random_records(num_records: int) -> list[dict[str, Any]]:
    """Questions with 2 to 5 choices of different lengths."""
    rng = random.Random(0)
    records = []
    for number in range(num_records):
        choices = [f"{sentence(rng, 8)} {letter}" for letter in "abcde"[: rng.randint(2, 5)]]
        answer = rng.randrange(len(choices))
        records.append({"question": f"{sentence(rng, 30)}?", "choices": choices, "answer": answer, "group": f"g{number % 2}"})
    return records


def write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "questions.jsonl", random_records(40))


@torch.no_grad()
def text_log_prob(model: PreTrainedModel, encoder: ChatEncoder, context: str, continuation: str) -> float:
    """Log-probability of the bytes of ``continuation`` (the tokenizer has one token for each), by a plain forward."""
    ids = encoder.tokenizer(context + continuation)["input_ids"]
    num_target = len(continuation.encode())
    log_probs_LV = model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_probs_LV[place - 1, ids[place]]) for place in range(len(ids) - num_target, len(ids)))


def brute_force_choices(
    model: PreTrainedModel, encoder: ChatEncoder, records: Sequence[dict[str, Any]], normalize: bool
) -> list[float]:
    right = []
    for record in records:
        scores = [
            text_log_prob(model, encoder, record["question"], f" {choice}") / (len(choice) if normalize else 1)
            for choice in record["choices"]
        ]
        right.append(float(np.argmax(scores) == record["answer"]))
    return right


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_choices_equal_brute_force(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, file: str, normalize: bool, batch_size: int, no_bars: None
) -> None:
    scores = MultipleChoice(file, normalize=normalize, batch_size=batch_size).measure(tiny_model, encoder)
    expected = brute_force_choices(tiny_model, encoder, random_records(40), normalize)
    assert 0 < sum(expected) < 40
    assert scores["multiple_choice"].values == expected
    assert scores["multiple_choice/g1"].values == expected[1::2]


def test_normalizing_decides_some_questions(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    per_character, in_sum = (brute_force_choices(tiny_model, encoder, random_records(40), n) for n in (True, False))
    assert per_character != in_sum


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_log_probs_of_texts_equal_plain_forwards(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, batch_size: int, no_bars: None
) -> None:
    model = tiny_model.double()
    contexts = [record["question"] for record in random_records(12)]
    continuations = [[f" {choice}" for choice in record["choices"]] for record in random_records(12)]
    found = score_texts(model, encoder, contexts, continuations, name="texts", batch_size=batch_size)
    expected = [
        [text_log_prob(model, encoder, context, text) for text in several]
        for context, several in zip(contexts, continuations, strict=True)
    ]
    for scores, log_probs in zip(found, expected, strict=True):
        assert [score.log_prob for score in scores] == pytest.approx(log_probs, rel=1e-5)


def test_a_context_that_does_not_fit_loses_its_beginning(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, no_bars: None
) -> None:
    tiny_model.config.max_position_embeddings = 40
    context = "".join(f"{number:03}" for number in range(30))
    with pytest.warns(UserWarning, match="cut: 1 of 2 texts do not fit the model's window"):
        [found], _ = score_texts(tiny_model, encoder, [context, "a"], [[" end"], [" b"]], name="cut", batch_size=8)
    expected = text_log_prob(tiny_model, encoder, context[-36:], " end")
    assert found.log_prob == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(text_log_prob(tiny_model, encoder, context, " end"), rel=1e-4)


def test_a_continuation_that_fills_the_window_is_refused(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    tiny_model.config.max_position_embeddings = 40
    with pytest.raises(UserError, match="a text of long has 51 tokens, .* window of 40. Shorten it"):
        score_texts(tiny_model, encoder, ["a"], [[" " + "b" * 50]], name="long", batch_size=8)


def test_white_space_before_a_continuation_belongs_to_it(encoder: ChatEncoder) -> None:
    plain = encoder.tokenizer("one two")["input_ids"]
    assert encode_continuations(encoder.tokenizer, "one ", ["two"]) == (plain[:3], [plain[3:]])
    assert encode_continuations(encoder.tokenizer, "one", [" two"]) == (plain[:3], [plain[3:]])


def test_text_that_looks_like_a_special_token_is_plain(encoder: ChatEncoder) -> None:
    context, [continuation] = encode_continuations(encoder.tokenizer, "<|im_end|>", [" <|im_start|>"])
    assert len(context) == len("<|im_end|>")
    assert len(continuation) == len(" <|im_start|>")


@pytest.mark.builtin_model
def test_a_text_is_divided_without_changing_its_tokens(builtin_encoder: ChatEncoder) -> None:
    texts = [" bread", " winter, never", " 1234", " Überfluss"]
    context, several = encode_continuations(builtin_encoder.tokenizer, "Slow rivers above the", texts)
    assert [builtin_encoder.tokenizer.decode(ids) for ids in several] == texts
    for ids, text in zip(several, texts, strict=True):
        assert context + ids == builtin_encoder.tokenizer(f"Slow rivers above the{text}")["input_ids"]


# Files of one's own.


def test_an_answer_may_be_given_as_text(file: str, tmp_path: Path) -> None:
    by_text = [{**record, "answer": record["choices"][record["answer"]]} for record in random_records(40)]
    assert MultipleChoice(write(tmp_path / "text.jsonl", by_text)).examples == MultipleChoice(file).examples


def test_without_groups_there_is_one_score(tiny_model: PreTrainedModel, encoder: ChatEncoder, tmp_path: Path) -> None:
    records = [{key: value for key, value in record.items() if key != "group"} for record in random_records(4)]
    scores = MultipleChoice(write(tmp_path / "a.jsonl", records), name="mine").measure(tiny_model, encoder)
    assert list(scores) == ["mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "line 2 has no text in the field 'question'"),
        ({"choices": ["one"]}, "line 2 has no list of texts in the field 'choices'"),
        ({"answer": 9}, "line 2 has no number from 0 to 1 in the field 'answer'"),
        ({"answer": "neither"}, "line 2 has no number from 0 to 1 in the field 'answer'"),
        ({"group": 1}, "line 2 has no text in the field 'group'"),
    ],
)
def test_a_wrong_question_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record = {"question": "Which?", "choices": ["this", "that"], "answer": 1}
    file = write(tmp_path / "questions.jsonl", [record, {**record, **change}])
    with pytest.raises(UserError, match=message):
        MultipleChoice(file).setup()


def test_settings_tell_apart_what_scores_depend_on(file: str) -> None:
    before = MultipleChoice(file).settings
    assert MultipleChoice(file, name="other", batch_size=1).settings == before
    assert MultipleChoice(file, normalize=False).settings != before
    assert MultipleChoice(file, limit=10).settings != before
    json.dumps(before)


def test_a_limit_takes_questions_from_the_whole_file(file: str) -> None:
    all_of_them = MultipleChoice(file).examples
    assert MultipleChoice(file, limit=4).examples == [all_of_them[index] for index in (0, 10, 20, 30)]


@pytest.mark.parametrize("setting", ["limit", "batch_size"])
def test_settings_out_of_range_are_refused(file: str, setting: str) -> None:
    with pytest.raises(UserError, match=f"--retention.suites: mine.{setting} must be at least"):
        MultipleChoice(file, name="mine", **{setting: -1})  # type: ignore[arg-type]


# HellaSwag.


@pytest.fixture
def scenes(tmp_path: Path) -> str:
    endings = ["[step] goes  home.", "sings [title] Loudly.", "reads.", "is a wolf in winter."]
    record = {"activity_label": "Rowing", "ctx_a": "A man sits.", "ctx_b": "the Man", "endings": endings, "label": 2}
    article = {**record, "ctx_a": "[header] How to row [title] Sit.", "ctx_b": "", "label": "1"}
    write(tmp_path / "hellaswag" / "validation.jsonl", [record, article])
    return str(tmp_path)


def test_scenes_are_cleaned_of_marks(scenes: str) -> None:
    first, second = HellaSwag(scenes).examples
    assert first.context == "Rowing: A man sits. The man"
    assert first.choices == (" goes home.", "sings. Loudly.", "reads.", "is a wolf in winter.")
    assert second.context.rstrip() == "Rowing: How to row. Sit."
    assert (first.gold, second.gold) == (2, 1)


def test_cleaning_leaves_other_text_alone() -> None:
    assert clean("A (small) step; title: none.") == "A (small) step; title: none."


def test_endings_equal_brute_force(tiny_model: PreTrainedModel, encoder: ChatEncoder, scenes: str) -> None:
    suite = HellaSwag(scenes)
    records = [{"question": q.context.rstrip(), "choices": q.choices, "answer": q.gold} for q in suite.examples]
    assert suite.measure(tiny_model, encoder)["hellaswag"].values == brute_force_choices(tiny_model, encoder, records, True)


# LAMBADA.


@pytest.fixture
def passages(tmp_path: Path) -> str:
    rng = random.Random(1)
    (tmp_path / "lambada").mkdir()
    lines = [f"{sentence(rng, 40)} {sentence(rng, 1)}\n" for _ in range(20)]
    (tmp_path / "lambada" / "development.txt").write_text("".join(lines))
    return str(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 6, 32])
def test_nll_of_last_words_equals_brute_force(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, passages: str, batch_size: int, no_bars: None
) -> None:
    suite = Lambada(passages, batch_size=batch_size)
    score = suite.measure(tiny_model, encoder)["lambada_nll"]
    expected = [-text_log_prob(tiny_model, encoder, p.context, f" {p.word}") for p in suite.examples]
    assert score.values == pytest.approx(expected, rel=1e-4)
    assert (score.higher_is_better, score.has_kept_share) == (False, False)


def test_a_word_counts_if_greedy_decoding_writes_it(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, passages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [[ContinuationScore(-number / 2, number % 4 == 0)] for number in range(20)]
    monkeypatch.setattr("mixsd_lightning.evaluation.suites.lambada.score_texts", lambda *_, **__: found)
    scores = Lambada(passages).measure(tiny_model, encoder)
    assert scores["lambada"].values == [1, 0, 0, 0] * 5
    assert scores["lambada_nll"].value == pytest.approx(9.5 / 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make_suite", [Lambada, HellaSwag])
def test_measuring_leaves_mode_weights_and_randomness(
    tiny_model: PreTrainedModel,
    encoder: ChatEncoder,
    make_suite: type[Suite],
    training: bool,
    passages: str,
    scenes: str,
    no_bars: None,
) -> None:
    tiny_model.train(training)
    before = copy.deepcopy(tiny_model.state_dict())
    states = torch.get_rng_state(), random.getstate()
    make_suite(data_dir=scenes).measure(tiny_model, encoder)  # type: ignore[call-arg]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert {module.training for module in tiny_model.modules()} == {training}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
