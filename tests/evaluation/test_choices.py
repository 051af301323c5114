"""Which letter an answer gives: the last, and never an article."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd_lightning.evaluation.choices import extract_choice, mentions_letter

LETTERS = st.sampled_from(string.ascii_uppercase[:5])


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        # Answer lines, in all their forms.
        ("It has feathers.\nAnswer: B", "B"),
        ("Answer: b", "B"),
        ("answer:B.", "B"),
        ("ANSWER : B", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("**Answer**: **B**", "B"),
        ("Answer: __B__", "B"),
        ("### Final answer: (B)", "B"),
        ("> The correct answer: [B]", "B"),
        ("- Answer: `B`", "B"),
        ('Answer: "B"', "B"),
        ("Answer: ( b )", "B"),
        (r"Answer: \boxed{B}", "B"),
        (r"Answer: $\boxed{\text{B}}$", "B"),
        ("Answer:\n\nB", "B"),
        ("Answer: B. a house", "B"),
        ("Answer: B) a house", "B"),
        ("Answer: B, a house", "B"),
        ("Answer: **B** a house", "B"),
        ("Answer: option B", "B"),
        ("Answer: B because nothing else is sold", "B"),
        ("Answer is: B", "B"),
        ("Answer：B", "B"),  # a full-width colon
        ("1. Answer: B", "B"),
        # The last answer wins, and a line over running text.
        ("Answer: A\nNo.\nAnswer: B", "B"),
        ("Answer: B\nThe answer is A.", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        ("Answer: B\nAnswer:", "B"),
        ("Answer: A\n(Why not B? The answer is C.)", "A"),
        # Running text.
        ("So the answer is B.", "B"),
        ("so the correct answer is (b), as said", "B"),
        ("The correct option is **D**.", "D"),
        ("Best choice: C", "C"),
        ("the answer is A because it flies", "A"),
        # Nothing but a letter.
        ("A", "A"),
        ("b", "B"),
        (" (C). \n", "C"),
        ("d)", "D"),
        ("**E**", "E"),
        ("[A]", "A"),
        # The article, words and units.
        ("A dog is a mammal.", None),
        ("Answer: A dog", None),
        ("Answer: a dog", None),
        ("The answer is A dog.", None),
        ("the answer is a", None),
        ("The answer is a mammal, A", None),
        ("Answer: I think so", None),
        ("Answer: A-level", None),
        ("Answer: B12", None),
        ("Answer: C++", None),
        ("Answer: A's", None),
        ("Answer: A.M.", None),
        # No decision.
        ("Answer: A or B", None),
        ("Answer: (A) and (B)", None),
        ("Answer: A, B, C", None),
        ("Answer: A/B", None),
        ("The answer is not B.", None),
        ("The answer is neither.", None),
        ("I like B.", None),
        ("B. a house", None),
        ("Answer: А", None),  # Cyrillic
        ("答案 B", None),
        ("Answer: 2", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_letter_is_found(completion: str, letter: str | None) -> None:
    assert extract_choice(completion) == letter


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), LETTERS)
def test_a_last_answer_line_counts_whatever_stands_before(before: str, letter: str) -> None:
    assert extract_choice(f"{before}\nAnswer: {letter}") == letter


PIECES = ["Answer: ", "the answer is ", "It", " dog", " because ", " or ", ", ", "(", ")", "**", ".", "\n", " ", "?", "?"]


@given(st.lists(st.sampled_from(PIECES), max_size=9), LETTERS, LETTERS)
def test_no_letter_is_treated_better_than_another(pieces: list[str], one: str, other: str) -> None:
    found = [extract_choice("".join(pieces).replace("?", letter)) for letter in (one, other)]
    assert found in ([one, other], [None, None])


@pytest.mark.parametrize(
    ("completion", "letter", "expected"),
    [
        ("I would go for B.", "B", True),
        ("B is right", "B", True),
        ("it is (b)", "B", False),
        ("**B**\n\n", "B", True),
        ("B\nI am sure.", "B", False),
        ("Bees and BB", "B", False),
        ("A dog is a mammal.", "A", False),
        ("It must be A", "A", True),
        ("vitamin B12", "B", False),
        ("", "A", False),
    ],
)
def test_loosely_the_letter_stands_in_the_last_line(completion: str, letter: str, expected: bool) -> None:
    assert mentions_letter(completion, letter) is expected
