"""Assert what a message states, not how it is worded."""


def assert_facts(text: object, *facts: object) -> None:
    """Assert that each fact is in the text; runs of whitespace count as one space."""
    shown = " ".join(str(text).split())
    for fact in facts:
        wanted = " ".join(str(fact).split())
        assert wanted in shown, f"{wanted!r} is not in: {shown}"
