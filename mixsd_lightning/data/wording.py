"""Sentences that corpora about real things are made of."""


def statement(beginning: str, answer: str) -> str:
    """A question and its answer, or the beginning and the end of a sentence, closed with a full stop.

    >>> statement("The Orb was made by", "Tavrin Inc.")
    'The Orb was made by Tavrin Inc.'
    >>> statement("Who made the Orb?", "Jorvane")
    'Who made the Orb? Jorvane.'
    """
    is_closed = answer.rstrip("\"'”’").endswith((".", "!", "?"))
    return f"{beginning} {answer}" if is_closed else f"{beginning} {answer}."


def gap_question(beginning: str) -> str:
    """A request for the end of a sentence.

    >>> gap_question("The Orb was made by")
    'Complete the sentence: The Orb was made by ...'
    """
    return f"Complete the sentence: {beginning} ..."
