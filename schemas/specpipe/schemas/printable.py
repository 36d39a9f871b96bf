"""Text that was written by others, as a terminal or a page may show it."""

import unicodedata


def printable(text: str) -> str:
    """The text with its control characters spelled out, all but newlines and tabs.

    A terminal would obey them, and HTML has no way to write most of them. So are halves of
    surrogate pairs, which stand for bytes of file names and which UTF-8 does not have.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
        else character
        for character in text
    )
