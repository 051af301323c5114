"""Suites that generate: what is asked, how answers are scored, and that the model is left as it was."""

import csv
import gzip
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import transformers_greedy
from transformers import PreTrainedModel

from mixsd_lightning.context import INSTRUCTIONS, ChatEncoder, Message
from mixsd_lightning.decoding.generation import Completion
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation import math_answers
from mixsd_lightning.evaluation.math_answers import MathVerifier, math_verify_version
from mixsd_lightning.evaluation.programs import extract_code
from mixsd_lightning.evaluation.suites import AIME2024, GPQA, GSM8K, MATH500, MMLU, HumanEval
from mixsd_lightning.evaluation.suites.generation import GenerationSuite, Problem
from mixsd_lightning.evaluation.suites.humaneval import program
from mixsd_lightning.evaluation.suites.mmlu import chosen_letter
from mixsd_lightning.models import stop_token_ids

SUITES = [GSM8K, MATH500, AIME2024, HumanEval, MMLU, GPQA]
DOUBLE = {
    "prompt": 'def double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
}

Say = Callable[[int], list[str]]
"""Number of a problem -> the samples that the model gives."""


class Count(GenerationSuite):
    """Ten problems of different lengths; an answer is right if it begins with an even byte."""

    name = "count"
    default_max_new_tokens = 6

    def load(self) -> list[Problem]:
        return [Problem(f"Count to {'x' * index**2}{index}.", index, f"g{index % 2}") for index in range(10)]

    def score(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        return [float(answer.encode()[:1] < b"M") for answer in answers]


def write(path: Path, *records: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    write(tmp_path / "gsm8k/test.jsonl", *({"question": f"What is {n}+0?", "answer": f"... #### {n}"} for n in range(4)))
    write(tmp_path / "math500/test.jsonl", {"problem": "Halve 1.", "answer": "\\frac{1}{2}"})
    write(tmp_path / "aime2024/test.jsonl", {"problem": "Count.", "answer": "33"})
    write(tmp_path / "humaneval/HumanEval.jsonl", DOUBLE)
    header = "question,choice0,choice1,choice2,choice3,answer\n"
    for subject, num_rows in (("virology", 2), ("astronomy", 3)):
        for split, size in (("test", num_rows), ("dev", 6)):
            path = tmp_path / "mmlu" / split / f"{subject}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(header + "".join(f"{subject} {split} {n}?,p,q,r,s,{n % 4}\n" for n in range(size)))
    columns = ["Question", "Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3)), "High-level domain"]
    for subset, size in (("gpqa_main", 8), ("gpqa_diamond", 2)):
        rows = [[f"What is {n}?", f"{n}!", f"{n}?", f"{n};", f"{n},", ("Physics", "Biology")[n % 2]] for n in range(size)]
        (tmp_path / "gpqa").mkdir(exist_ok=True)
        with (tmp_path / f"gpqa/{subset}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    return str(tmp_path)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, encoder: ChatEncoder) -> Callable[[Say], None]:
    """Have any model answer as told: a random one writes no words."""

    def let(say: Say) -> None:
        def roll_out(model: object, prompts: object, keys: Sequence[str], *_: object, **__: object) -> list[list[Completion]]:
            numbers = [int(key.partition("|")[2]) for key in keys]
            return [[Completion(encoder.target(text)) for text in say(number)] for number in numbers]

        monkeypatch.setattr("mixsd_lightning.evaluation.suites.generation.roll_out", roll_out)

    return let


# What all of them do.


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_greedy_answers_are_those_of_transformers(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, batch_size: int, no_bars: None
) -> None:
    suite = Count(batch_size=batch_size)
    suite.measure(tiny_model, encoder)
    stop_ids = stop_token_ids(tiny_model, encoder.end_of_turn_id)
    prompts = [encoder.prompt([Message("user", problem.question)]) for problem in suite.examples]
    expected = [encoder.decode(transformers_greedy(tiny_model, prompt, stop_ids, 6)) for prompt in prompts]
    assert [answer.completion for answer in suite.answers] == expected
    assert [answer.question for answer in suite.answers] == [problem.question for problem in suite.examples]


def test_samples_differ_and_are_the_same_again(tiny_model: PreTrainedModel, encoder: ChatEncoder, no_bars: None) -> None:
    suite = Count(num_samples=4, temperature=1.0)
    first = suite.measure(tiny_model, encoder)
    said = [answer.completion for answer in suite.answers]
    assert len(said) == 40
    assert len(set(said)) > 20
    again = Count(num_samples=4, temperature=1.0, batch_size=5)
    assert again.measure(tiny_model, encoder) == first
    assert [answer.completion for answer in again.answers] == said


def test_the_score_of_a_problem_is_the_mean_over_its_samples(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, says: Callable[[Say], None], no_bars: None
) -> None:
    says(lambda number: ["A", "A", "Z"] if number < 5 else ["Z", "Z", "Z"])
    suite = Count(num_samples=3, temperature=1.0)
    scores = suite.measure(tiny_model, encoder)
    assert scores["count"].values == pytest.approx([2 / 3] * 5 + [0] * 5)
    assert scores["count/g0"].values == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0, 0])
    assert [answer.is_right for answer in suite.answers] == [True, True, False] * 5 + [False] * 15


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_mode_weights_and_randomness(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, training: bool, no_bars: None
) -> None:
    tiny_model.train(training)
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    Count(num_samples=2, temperature=1.0).measure(tiny_model, encoder)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert {module.training for module in tiny_model.modules()} == {training}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": -1}, "--retention.suites: count.limit must be at least 1, or 0 for all examples, got -1"),
        ({"max_new_tokens": 0}, "count.max_new_tokens must be at least 1, got 0"),
        ({"num_samples": 0}, "count.num_samples must be at least 1, got 0"),
        ({"temperature": -0.1}, "count.temperature must be at least 0, got -0.1"),
        ({"num_samples": 4}, "count.temperature must be above 0 for 4 samples to differ, got 0.0"),
        ({"batch_size": 0}, "count.batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Count(**settings)


@pytest.mark.parametrize("change", [{"limit": 5}, {"max_new_tokens": 7}, {"temperature": 1.0}])
def test_settings_tell_apart_what_scores_depend_on(change: dict[str, Any]) -> None:
    assert Count(**change).settings != Count().settings
    assert Count(batch_size=1, every_n_validations=3).settings == Count().settings
    json.dumps(Count().settings)


def test_another_revision_of_the_protocol_has_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Count().settings
    monkeypatch.setattr(Count, "revision", 2)
    assert Count().settings != before


def test_expensive_suites_wait_for_the_last_validation(data_dir: str) -> None:
    assert {suite(data_dir).every_n_validations for suite in SUITES} == {0}


def test_solved_problems_that_do_not_fit_are_left_out_from_the_front(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, data_dir: str, says: Callable[[Say], None], no_bars: None
) -> None:
    suite = MMLU(data_dir, max_new_tokens=8)
    longest = [len(encoder.prompt([problem.message(3)])) for problem in suite.examples]
    tiny_model.config.max_position_embeddings = max(longest) + 8
    seen: list[list[int]] = []

    def roll_out(model: object, prompts: list[list[int]], *_: object, **__: object) -> list[list[Completion]]:
        seen.extend(prompts)
        return [[Completion(encoder.target("\\boxed{A}"))] for _ in prompts]

    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="mmlu: 5 of 5 prompts do not fit"):
        patch.setattr("mixsd_lightning.evaluation.suites.generation.roll_out", roll_out)
        suite.measure(tiny_model, encoder)
    texts = [encoder.decode(prompt) for prompt in seen]
    assert max(map(len, seen)) + 8 <= tiny_model.config.max_position_embeddings
    assert all("dev 4?" in text and "dev 3?" in text and "dev 0?" not in text for text in texts)


def test_a_problem_that_does_not_fit_is_refused(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    tiny_model.config.max_position_embeddings = 60
    with pytest.raises(UserError, match="a problem of count has .* an answer of 6 .* window of 60. Lower max_new_tokens"):
        Count().measure(tiny_model, encoder)


# Mathematics.


@pytest.fixture
def needs_math_verify() -> None:
    pytest.importorskip("math_verify")


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (r"So it is \boxed{\frac{1}{2}}.", True),
        (r"\boxed{0.5}", True),
        (r"First \boxed{3}, then \boxed{1/2}", True),
        (r"First \boxed{1/2}, then \boxed{3}", False),
        ("It is 1/2.", False),
        (r"It is \boxed{1/2", False),
        (r"\boxed{}", False),
        (r"\boxed{\frac{}{}}", False),
    ],
)
def test_mathematics_counts_boxes_of_the_same_value(
    data_dir: str, answer: str, is_right: bool, needs_math_verify: None
) -> None:
    suite = MATH500(data_dir)
    assert suite.score(suite.examples, [answer]) == [float(is_right)]


def test_gsm8k_takes_the_number_after_the_mark(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, data_dir: str, says: Callable[[Say], None], needs_math_verify: None
) -> None:
    says(lambda number: [f"\\boxed{{{number}.0}}" if number else "\\boxed{7}"])
    assert GSM8K(data_dir).measure(tiny_model, encoder)["gsm8k"].values == [0, 1, 1, 1]


def test_mathematics_is_asked_in_one_user_turn(data_dir: str) -> None:
    [problem] = MATH500(data_dir).examples
    message = problem.message(0)
    assert message.role == "user"
    assert message.content.endswith("\n\nHalve 1.")
    assert "\\boxed{}" in message.content


def test_what_takes_for_ever_is_wrong_and_counted(data_dir: str, needs_math_verify: None) -> None:
    suite, started = MATH500(data_dir), time.monotonic()
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="could not compare 1 of 2 answers"):
        patch.setattr(MathVerifier.__init__, "__defaults__", (1.0,))
        assert suite.score([suite.examples[0]] * 2, [r"\boxed{9^{9^{9^9}}}", r"\boxed{.5}"]) == [0, 1]
    assert time.monotonic() - started < 30


def test_an_exception_inside_is_counted_and_equal_text_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print('null', flush=True)\n")
    monkeypatch.setattr(math_answers, "_CHILD", child)
    with MathVerifier() as verifier:
        assert not verifier.is_same("1", "2")
        assert verifier.is_same("x?", "x?")
        assert verifier.num_undecided == 1


def test_a_verifier_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("print('ready', flush=True)\ninput()\n")
    monkeypatch.setattr(math_answers, "_CHILD", child)
    with MathVerifier() as verifier:
        assert [verifier.is_same("1", "2") for _ in range(3)] == [False] * 3
        assert verifier.num_undecided == 3


def test_answers_are_compared_in_any_thread(needs_math_verify: None) -> None:
    found: list[bool] = []

    def compare() -> None:
        with MathVerifier() as verifier:
            found.append(verifier.is_same("0.5", r"\frac{1}{2}"))

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    assert found == [True]


def test_a_verifier_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("raise ImportError('antlr4 is too old')")
    monkeypatch.setattr(math_answers, "_CHILD", child)
    message = "math-verify does not start: ImportError: antlr4 is too old. Install it again."
    with pytest.raises(UserError, match=message), MathVerifier() as verifier:
        verifier.is_same("1", "2")


def test_without_math_verify_the_extra_is_named_before_anything_is_generated(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'mixsd_lightning\[eval\]'"):
        GSM8K(data_dir).setup()


def test_settings_name_the_version_of_math_verify(data_dir: str, needs_math_verify: None) -> None:
    assert GSM8K(data_dir).settings["math_verify"] == math_verify_version()


# Programs.


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\na\n```\nand\n```python\nb\n```", "a\n"),
        ("```py\n  a\n```", "  a\n"),
        ("```Python3\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("a\n```", "a\n"),
        ("a\nb", "a\nb"),
    ],
)
def test_code_is_found_in_an_answer(answer: str, code: str) -> None:
    assert extract_code(answer) == code


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("```python\ndef double(x):\n    return x + x\n```", True),
        ("```python\n    return x + x\n```", True),
        ("def double(x):\n    return x + x", True),
        ("```python\ndef double(x):\n    return x\n```", False),
        ("```python\ndef treble(x):\n    return 3 * x\n```", False),
        ("I cannot do that.", False),
        ("```python\nimport sys\nsys.exit(0)\n```", False),
    ],
)
def test_humaneval_counts_programs_that_pass(data_dir: str, answer: str, is_right: bool) -> None:
    suite = HumanEval(data_dir)
    assert suite.score(suite.examples, [answer]) == [float(is_right)]


def test_several_programs_keep_their_order(data_dir: str) -> None:
    suite = HumanEval(data_dir)
    answers = [f"```python\n    return {factor} * x\n```" for factor in (1, 2, 3, 2)]
    assert suite.score([suite.examples[0]] * 4, answers) == [0, 1, 0, 1]


def test_humaneval_asks_for_the_function(data_dir: str) -> None:
    [problem] = HumanEval(data_dir).examples
    assert problem.message(0).content.endswith(f"\n\n```python\n{DOUBLE['prompt']}```")


def test_without_a_sandbox_nothing_is_generated(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("no sandbox here")

    monkeypatch.setattr("mixsd_lightning.evaluation.suites.humaneval.isolation", refuse)
    with pytest.raises(UserError, match="no sandbox here"):
        HumanEval(data_dir).setup()


# Multiple choice in a chat.


def test_gpqa_asks_as_the_corpora_do(data_dir: str) -> None:
    problems = GPQA(data_dir).examples
    assert [problem.group for problem in problems] == ["Physics", "Biology"] * 4
    assert len({problem.gold for problem in problems}) > 1
    for number, problem in enumerate(problems):
        stem, options, instruction = problem.message(0).content.split("\n\n")
        assert (stem, instruction) == (f"What is {number}?", INSTRUCTIONS["choice"])
        assert f"{problem.gold}. {number}!" in options.splitlines()
        assert [line[:3] for line in options.splitlines()] == ["A. ", "B. ", "C. ", "D. "]


def test_gpqa_has_subsets(data_dir: str) -> None:
    assert list(GPQA(data_dir, "gpqa_diamond").examples) == list(GPQA(data_dir).examples)[:2]


def test_gpqa_reads_letters_as_the_corpora_do(data_dir: str) -> None:
    suite = GPQA(data_dir)
    problem = suite.examples[0]
    other = "A" if problem.gold != "A" else "B"
    answers = [
        f"Answer: {other}\nAnswer: {problem.gold}",
        f"The answer is {other}.",
        f"{problem.gold} it is",
        f"({problem.gold})",
    ]
    assert suite.score([problem] * 4, answers) == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{A} no, \boxed{ c }", "C"),
        (r"\boxed{A} of \boxed{4}", "A"),
        ("d", "D"),
        ("(B).\nBecause", "B"),
        ("**C**", "C"),
        ("B is right", "B IS RIGHT"),
        ("", ""),
    ],
)
def test_letter_of_an_answer(answer: str, letter: str) -> None:
    assert chosen_letter(answer) == letter


def test_mmlu_scores_subjects_by_category(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, data_dir: str, says: Callable[[Say], None]
) -> None:
    says(lambda number: ["\\boxed{B}"])
    scores = MMLU(data_dir).measure(tiny_model, encoder)
    assert scores["mmlu"].values == [0, 1, 0, 0, 1]  # astronomy, then virology
    assert {tag: score.value for tag, score in scores.items() if tag != "mmlu"} == {"mmlu/STEM": 1 / 3, "mmlu/other": 1 / 2}


def test_mmlu_shows_five_solved_questions_of_the_subject(data_dir: str) -> None:
    text = MMLU(data_dir).examples[1].message(5).content
    expected = [f"Question: astronomy dev {n}?\nA. p\nB. q\nC. r\nD. s\nAnswer: \\boxed{{{'ABCDA'[n]}}}" for n in range(5)]
    assert text.split("\n\n")[1:] == [*expected, "Question: astronomy test 1?\nA. p\nB. q\nC. r\nD. s\nAnswer:"]
    assert "about astronomy" in text.split("\n\n")[0]


# Public data sets, where the variable names a folder that has them.


@pytest.mark.parametrize("make_suite", [GSM8K, MATH500, AIME2024])
def test_public_gold_answers_are_right_in_other_words(
    public_data: str, make_suite: type[GSM8K], needs_math_verify: None
) -> None:
    problems = make_suite(public_data).examples
    # A space in front keeps equal text from being enough.
    with MathVerifier() as verifier:
        wrong = [problem.gold for problem in problems if not verifier.is_same(f" {problem.gold}", problem.gold)]
    assert wrong == []


def test_public_gold_answers_of_other_problems_are_wrong(public_data: str, needs_math_verify: None) -> None:
    suite = GSM8K(public_data, limit=100)
    golds = [problem.gold for problem in suite.examples]
    shifted = golds[1:] + golds[:1]
    scores = suite.score(suite.examples, [f"\\boxed{{{gold}}}" for gold in shifted])
    assert scores == [float(a == b) for a, b in zip(golds, shifted, strict=True)]


def test_public_canonical_programs_pass(public_data: str) -> None:
    suite = HumanEval(public_data)
    text = gzip.decompress(Path(public_data, "humaneval", "HumanEval.jsonl.gz").read_bytes()).decode()
    records = [json.loads(line) for line in text.splitlines()]
    answers = [f"```python\n{record['canonical_solution']}```" for record in records]
    scores = suite.score(suite.examples, answers)
    assert [record["task_id"] for record, score in zip(records, scores, strict=True) if not score] == []


def test_public_programs_without_a_body_fail(public_data: str) -> None:
    suite = HumanEval(public_data, limit=10)
    assert suite.score(suite.examples, ["```python\n    return None\n```"] * 10) == [0] * 10
    assert program(suite.examples[0], "x").startswith("from typing import List")


@pytest.mark.builtin_model
@pytest.mark.parametrize("make_suite", [suite for suite in SUITES if suite is not GPQA])  # which nobody may publish
def test_public_prompts_fit_the_built_in_model(
    public_data: str, make_suite: type[GenerationSuite], builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder
) -> None:
    suite = make_suite(public_data, limit=300)
    prompts = suite._prompts(builtin_model, builtin_encoder)
    longest = max(map(len, prompts)) + suite.max_new_tokens
    assert longest <= builtin_model.config.max_position_embeddings
    whole = [len(builtin_encoder.prompt([problem.message(len(problem.shots))])) for problem in suite.examples]
    assert [len(prompt) for prompt in prompts] == whole
