"""The facts that a message must state: keys, numbers, paths, commands. Its wording is free."""


def assert_facts(text: object, *facts: object) -> None:
    """Assert that every fact, as a string, occurs in the text. A run of whitespace counts as one space."""
    found = " ".join(str(text).split())
    for fact in facts:
        assert " ".join(str(fact).split()) in found, f"{str(fact)!r} is missing in: {text}"
