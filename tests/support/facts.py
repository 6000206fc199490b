"""Check the facts in a message, whatever its wording."""


def assert_facts(text: object, *facts: object) -> None:
    """Assert that str(text) contains each str(fact); a run of whitespace counts as one space."""
    found = " ".join(str(text).split())
    for fact in facts:
        assert " ".join(str(fact).split()) in found, f"missing {str(fact)!r} in: {found}"
