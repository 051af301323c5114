"""The unit of knowledge that corpora give and methods teach."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One question about one piece of knowledge."""

    id: str
    """Unique in its corpus; the random numbers of its targets hang on it."""
    question: str
    """The bare question."""
    prompt: str
    """The whole user turn: background (if any), question, and how to answer."""
    answer: str
    """The short gold answer. Of ``code`` it is the program that tests an answer, of ``tool_calls`` the calls as JSON."""
    target: str
    """The canonical answer turn y*, which SFT trains on."""
    fact: str
    """The knowledge as one sentence."""
    answer_format: str = "sentence"
    """``sentence``, ``short``, ``boxed``, ``choice``, ``code`` or ``tool_calls``: how the prompt asks for the answer and how it is
    found in a completion."""
    subject: str = ""
    """The entity that the fact is about, or the topic of a question."""
    expert_context: str = ""
    """How the expert is shown the knowledge, a name of :data:`~mixsd_lightning.context.EXPERT_CONTEXTS`; by default what suits
    the answer format."""
    wrong_answers: tuple[str, ...] = ()
    """Answers that may be taken for the right one."""
