"""Keys as they come from the environment: made usable before they are sent, and kept out of what is said of errors.

Which service a key is for, and what its errors mean, is for the module of that service.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST = 4
"""Characters of a secret below which hiding it would only garble a text."""


class UnusableKeyError(ValueError):
    """A key that no server can have given out. The text names its variable, never the key."""


def usable_key(variable: str, key: str) -> str:
    """`key` without the white space around it, which a mounted file's last line end is; may be empty.

    Raises UnusableKeyError for what no HTTP header can hold: sent all the same, the library's error would quote it.
    """
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UnusableKeyError(f"{variable} holds white space or characters that no key has (it is not shown).")
    return key


def hidden(text: str, secrets: Iterable[str], by: str = "[secret]") -> str:
    """`text` without `secrets`, as they are and as an error quotes them: escaped like in Python's repr."""
    forms = {form for secret in secrets for form in (secret, repr(secret)[1:-1]) if len(secret) >= SHORTEST}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, by)
    return text
