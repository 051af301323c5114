"""Examples of every answer format."""

import json

from mixsd_lightning.context import user_turn
from mixsd_lightning.example import Example

NAMES = ("Tavrin Guild", "Orvek Union", "Sulmar Society", "Pelvane Council", "Kestrol League", "Dormand Order")


def sentence(number: int) -> Example:
    name = NAMES[number % len(NAMES)]
    question = f"Which group owns Tower {number}?"
    fact = f"Tower {number} is owned by the {name}."
    return Example(f"s{number}", question, user_turn(question, "sentence"), name, fact, fact)


def short(number: int) -> Example:
    question, answer = f"When was Tower {number} built?", str(1500 + number)
    fact = f"Tower {number} was built in {answer}."
    return Example(f"y{number}", question, user_turn(question, "short"), answer, answer, fact, "short")


def boxed(number: int) -> Example:
    question, answer = f"How high is Tower {number} in metres?", f"{30 + number}"
    target = f"Its sign says {answer}.\n\n\\boxed{{{answer}}}"
    return Example(f"b{number}", question, user_turn(question, "boxed"), answer, target, f"It is {answer} m high.", "boxed")


def choice(number: int) -> Example:
    letter = "ABC"[number % 3]
    question = f"Which is the colour of Tower {number}?\n\nA. red\nB. green\nC. blue"
    return Example(
        f"c{number}",
        question,
        user_turn(question, "choice"),
        letter,
        f"A look at it is enough.\nAnswer: {letter}",
        f"A tower has a colour, and Tower {number} has {letter}.",
        "choice",
        wrong_answers=tuple(other for other in "ABC" if other != letter),
    )


def code(number: int) -> Example:
    question = f"Write a function add_{number}(x) that adds {number}."
    return Example(
        f"p{number}",
        question,
        user_turn(question, "code"),
        f"assert add_{number}(1) == {number + 1}",
        f"```python\ndef add_{number}(x):\n    return x + {number}\n```",
        f"add_{number} adds {number}.",
        "code",
    )


def tool_calls(number: int) -> Example:
    question = f"Open door {number}."
    return Example(
        f"t{number}",
        question,
        user_turn(question, "tool_calls"),
        json.dumps([{"Action": "open", "Action_Input": {"door": number}}]),
        f'Action: open\nAction Input: {{"door": {number}}}',
        f"Door {number} is opened by open.",
        "tool_calls",
    )


FORMATS = (sentence, short, boxed, choice, code, tool_calls)
