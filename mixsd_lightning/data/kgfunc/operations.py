"""The functions of KGFunc, and worked solutions of those that are taught.

Formulas: MixSD's corpus of mathematical operations (arXiv 2605.16865); digits d_1 ... d_n, most significant first. Every step of a
worked solution is an equation that can be checked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

Digits = Sequence[int]


@dataclass(frozen=True)
class Operation:
    """A function from non-negative integers to integers."""

    key: str
    """The name that prompts use; it says nothing about the rule."""
    rule: str
    """What it computes, for people: no prompt shows it."""
    apply: Callable[[int], int]
    steps: Callable[[int], list[str]] | None = None
    """Intermediate lines of a worked solution, the last of which ends in the result. Functions that are only asked have none."""

    def solution(self, number: int) -> str:
        """The worked solution: the digits, the intermediate lines, the result."""
        assert self.steps is not None
        lines = [f"The digits of {number} are {_join(digits_of(number), ', ')}.", *self.steps(number)]
        return "\n".join([*lines, f"{self.key}({number}) = {self.apply(number)}"])


def digits_of(number: int) -> list[int]:
    """Digits of a non-negative number, most significant first.

    >>> digits_of(5032)
    [5, 0, 3, 2]
    """
    return [int(digit) for digit in str(number)]


def _join(values: Sequence[object], between: str) -> str:
    return between.join(map(str, values))


def _sum_line(values: Sequence[int]) -> str:
    """``4 + 0 + 9 = 13``; a single number is its own sum."""
    return f"{_join(values, ' + ')} = {sum(values)}"


def _squared_deviations(number: int) -> list[int]:
    digits = digits_of(number)
    return [(digit - min(digits)) ** 2 for digit in digits]


def _squared_deviation_steps(number: int) -> list[str]:
    digits = digits_of(number)
    least = min(digits)
    lines = [f"({digit} - {least})^2 = {(digit - least) ** 2}" for digit in digits]
    return [f"The smallest digit is {least}.", *lines, _sum_line(_squared_deviations(number))]


def _alternating_squares(number: int) -> list[int]:
    return [(-1) ** index * digit**2 for index, digit in enumerate(digits_of(number))]


def _alternating_steps(number: int) -> list[str]:
    squares = [f"{digit}^2 = {digit**2}" for digit in digits_of(number)]
    terms = _alternating_squares(number)
    signed = "".join(
        str(abs(term)) if index == 0 else f" {'-' if index % 2 else '+'} {abs(term)}" for index, term in enumerate(terms)
    )
    return [*squares, f"{signed} = {sum(terms)}", f"|{sum(terms)}| = {abs(sum(terms))}"]


def _prime_terms(number: int) -> list[int]:
    return [digit**2 if digit in (2, 3, 5, 7) else digit for digit in digits_of(number)]


def _prime_steps(number: int) -> list[str]:
    lines = [
        f"{digit} is prime: {digit}^2 = {digit**2}" if digit in (2, 3, 5, 7) else f"{digit} is not prime: {digit}"
        for digit in digits_of(number)
    ]
    return [*lines, _sum_line(_prime_terms(number))]


def _mirror_products(number: int) -> list[int]:
    digits = digits_of(number)
    return [left * right for left, right in zip(digits, reversed(digits), strict=True)]


def _mirror_steps(number: int) -> list[str]:
    digits = digits_of(number)
    lines = [f"{left} * {right} = {left * right}" for left, right in zip(digits, reversed(digits), strict=True)]
    return [f"In reverse they are {_join(digits[::-1], ', ')}.", *lines, _sum_line(_mirror_products(number))]


def _running_maxima(number: int) -> list[int]:
    return list(accumulate(digits_of(number), max))


def _running_maxima_steps(number: int) -> list[str]:
    maxima = _running_maxima(number)
    return [f"The largest so far is {_join(maxima, ', ')}.", _sum_line(maxima)]


def _triangular_numbers(number: int) -> list[int]:
    return [digit * (digit + 1) // 2 for digit in digits_of(number)]


def _triangular_steps(number: int) -> list[str]:
    lines = [f"{digit} * {digit + 1} / 2 = {digit * (digit + 1) // 2}" for digit in digits_of(number)]
    return [*lines, _sum_line(_triangular_numbers(number))]


def _rotations(number: int) -> list[str]:
    text = str(number)
    return [text[shift:] + text[:shift] for shift in range(len(text))]


def _rotation_steps(number: int) -> list[str]:
    rotations = _rotations(number)
    least = min(map(int, rotations))
    return [f"The rotations are {_join(rotations, ', ')}.", f"The smallest is {least}."]


TAUGHT = (
    Operation(
        "B", "sum of squared deviations from the smallest digit",
        lambda number: sum(_squared_deviations(number)), _squared_deviation_steps,
    ),
    Operation(
        "C", "absolute alternating sum of squared digits",
        lambda number: abs(sum(_alternating_squares(number))), _alternating_steps,
    ),
    Operation("D", "sum of digits, prime ones squared", lambda number: sum(_prime_terms(number)), _prime_steps),
    Operation("E", "digits times digits in reverse, summed", lambda number: sum(_mirror_products(number)), _mirror_steps),
    Operation("F", "sum of running maxima", lambda number: sum(_running_maxima(number)), _running_maxima_steps),
    Operation("G", "sum of triangular numbers of the digits", lambda number: sum(_triangular_numbers(number)), _triangular_steps),
    Operation("H", "smallest rotation", lambda number: min(map(int, _rotations(number))), _rotation_steps),
)  # fmt: skip
"""The functions that are taught (B to H of the paper)."""

EASY = (
    Operation("a", "sum of the digits", lambda n: sum(digits_of(n))),
    Operation("b", "product of the digits other than zero", lambda n: prod(d for d in digits_of(n) if d)),
    Operation("c", "number of digits", lambda n: len(digits_of(n))),
    Operation("d", "largest digit", lambda n: max(digits_of(n))),
    Operation("e", "smallest digit", lambda n: min(digits_of(n))),
    Operation("f", "first digit", lambda n: digits_of(n)[0]),
    Operation("g", "last digit", lambda n: digits_of(n)[-1]),
    Operation("h", "largest less smallest digit", lambda n: max(digits_of(n)) - min(digits_of(n))),
    Operation("i", "digits in reverse", lambda n: int(str(n)[::-1])),
    Operation("j", "first and last digit, summed", lambda n: digits_of(n)[0] + digits_of(n)[-1]),
    Operation("k", "number of even digits", lambda n: sum(d % 2 == 0 for d in digits_of(n))),
    Operation("l", "number of odd digits", lambda n: sum(d % 2 for d in digits_of(n))),
    Operation("m", "number of different digits", lambda n: len(set(digits_of(n)))),
    Operation("n", "digital root", lambda n: 1 + (n - 1) % 9 if n else 0),
    Operation("o", "sum of squared digits", lambda n: sum(d**2 for d in digits_of(n))),
    Operation("p", "digits in ascending order", lambda n: int("".join(sorted(str(n))))),
    Operation("q", "digits in descending order", lambda n: int("".join(sorted(str(n), reverse=True)))),
    Operation("r", "number of zeros", lambda n: digits_of(n).count(0)),
    Operation("s", "twice the sum of the digits", lambda n: 2 * sum(digits_of(n))),
    Operation("t", "first times last digit", lambda n: digits_of(n)[0] * digits_of(n)[-1]),
)
"""Functions that are never taught: whether they can still be inferred shows what training cost."""
