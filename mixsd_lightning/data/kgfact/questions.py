"""Facts of KGFact, and chains of them, as questions with their canonical answers."""

from collections.abc import Sequence

from mixsd_lightning.context import user_turn, with_background
from mixsd_lightning.data.kgfact.graph import Edge, sentence
from mixsd_lightning.example import Example

Chain = tuple[Edge, ...]
"""One fact, or two of which the second starts where the first ends."""


def statements(chain: Chain) -> list[str]:
    """The facts as sentences."""
    return [edge.statement for edge in chain]


def ask(example_id: str, chain: Chain, answer_format: str, question: str = "", background: Sequence[str] = ()) -> Example:
    """The question for a chain's end.

    Args:
        example_id: Id of the example.
        chain: One fact or two.
        answer_format: How the answer is to be given.
        question: A wording of the question; by default the canonical one.
        background: Statements that stand before the question.
    """
    question = question or chain[-1].relation.question(_start(chain))
    return Example(
        id=example_id,
        question=question,
        prompt=with_background(background, user_turn(question, answer_format)),
        answer=chain[-1].target.name,
        target=_target(chain, answer_format),
        fact=" ".join(statements(chain)),
        answer_format=answer_format,
        subject=chain[0].source.name,
    )


def _start(chain: Chain) -> str:
    """What the last relation starts from, said in terms of the chain's start."""
    return chain[0].source.mention if len(chain) == 1 else chain[0].relation.relative(chain[0].source.mention)


def _target(chain: Chain, answer_format: str) -> str:
    last = chain[-1]
    if answer_format == "short":
        return last.target.name
    if answer_format == "sentence":
        return last.relation.statement(sentence(_start(chain)), last.target.mention)
    steps = [f"{number}. {text}" for number, text in enumerate(statements(chain), start=1)]
    reasoning = [last.statement] if len(chain) == 1 else [*steps, f"So the answer is {last.target.name}."]
    return "\n".join([*reasoning, "", f"\\boxed{{{last.target.name}}}"])
