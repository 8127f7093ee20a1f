"""Which head is meant, where a dialect knows one answer only; and answers that must be whole, where it knows no errors of single texts."""

from serving.answerer import Answered
from serving.errors import NotFound, ServingError
from serving.messages import Answer, HeadFacts, VersionFacts


def find_head(facts: VersionFacts, name: str, where: str) -> HeadFacts:
    """Return a head of the version that answers.

    Args:
        facts: Of the version.
        name: Of the head; "" is the only one.
        where: What named it, for the error.

    Raises:
        NotFound: 404; there is no such head, or none is named though there are several.
    """
    names = ", ".join(head.name for head in facts.heads)
    if not name and len(facts.heads) == 1:
        return facts.heads[0]
    if not name:
        raise NotFound(f"{where} must name one of the heads {names}")
    found = next((head for head in facts.heads if head.name == name), None)
    if found is None:
        # The name is the caller's own word, and could be a text that stands in the wrong place.
        raise NotFound(f"{where} names no head; the heads are {names}")
    return found


def whole(answered: Answered) -> list[Answer]:
    """Return the answers, one a text.

    Raises:
        ServingError: There is none about one of the texts.
    """
    for answer in answered.prediction.answers:
        if answer.error is not None:
            raise ServingError(answer.error)
    return answered.prediction.answers
