"""Values whose names say that they are secret, hidden; and put back when a job was edited."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

__all__ = ["HIDDEN", "hidden", "hidden_figures", "hidden_in_text", "restored"]

#: What stands for a secret.
HIDDEN = "(hidden)"

#: Words of a name that make it one of a secret: "db_password", "authToken" and "JWTSecret" are,
#: "tokenizer", "passes" and "tokens", of which there are 512, are not.
_ALONE = frozenset((
    "pass", "passcode", "passcodes", "passkey", "passkeys", "pwd", "pin", "pincode", "secret",
    "secrets", "token", "credential", "credentials", "cred", "creds", "auth", "oauth",
    "authorization", "bearer", "cookie", "cookies", "jwt", "otp", "totp", "signature",
))  # fmt: skip

#: Wherever it stands in a word, as in "mypasswords".
_WITHIN = re.compile(r"passw(?:or)?[dt]|passphrase|secrets?$")

#: Last words of a name that has no secret for its value, but tells of one: "AuthError: no such
#: user", "token_expired: true".
_TELLS = frozenset(("error", "exception", "warning", "found", "expired", "missing"))

#: Two words that are one only together, also where nothing separates them: a key may open
#: something, or belong to a value; tokens may be of a login, or of a text.
_TOGETHER = frozenset(
    before + after
    for befores, afters in (
        ("access account aes api auth decryption deploy encryption gpg hmac master pgp private rsa "
         "sas secret service signing ssh storage", "key keys"),
        ("app host session shared", "key"),
        ("access api app auth bearer bot client csrf deploy device github gitlab hf id oauth "
         "personal private push refresh secret session slack user webhook xsrf", "token tokens"),
        ("account admin amqp app client db email ftp http https key ldap login mail mongo mq my "
         "mysql pg postgres proxy rabbitmq redis root server smtp sql ssh store sudo user",
         "pass pwd"),
        ("session", "id ids"),
        ("connection", "string strings"),
    )
    for before in befores.split()
    for after in afters.split()
)  # fmt: skip

_RUN = re.compile(r"[A-Za-z]+")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")

# What is named in prose, in code and in their quotes, as far as to its value.
_NAMED = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:([A-Za-z]+)[ ])?([A-Za-z0-9_-]+)\\*["']?\s*[:=]+>?\s*"""
)
_OPTION = re.compile(r"""(?<![A-Za-z0-9_-])()--?([A-Za-z][A-Za-z0-9_-]*)["']?,?\s+(?!-)""")

# The same of a name that is a value itself: {"name": "password", "value": …}.
_ENTRY = re.compile(
    r"""()["'](?:name|key)\\*["']\s*:\s*\\*["']([\w.-]+)\\*["'],\s*"""
    r"""\\*["']value\\*["']\s*:\s*""",
    re.IGNORECASE,
)

#: An option in a list of a program's arguments, whose value is the next of them; and a name.
_ARGUMENT, _NAME = re.compile("--?([A-Za-z][A-Za-z0-9_-]*)"), re.compile(r"[\w.-]+")

_QUOTED = (  # to the line's end, if the other quote was cut off
    r"""\w{0,2}"(?:[^"\\]|\\.)*"|\w{0,2}'(?:[^'\\]|\\.)*'|\\+"[^"]*"|\\+'[^']*'|\w{0,2}["'][^\n]*"""
)
_BARE = r"""[^\s,;&}\])]+"""
_SEVERAL = r"""[\[({][^\])}\n]*[\])}]?"""
_VALUE = re.compile(
    rf"""{re.escape(HIDDEN)}|(?:digest|aws4-hmac-sha256)\s[^\r\n]*"""
    rf"""|(?:(?:basic|bearer|negotiate|ntlm|token|apikey)\s+)?(?:{_QUOTED}|{_SEVERAL}|{_BARE})""",
    re.IGNORECASE,
)
_COOKIES = re.compile(
    rf"""{re.escape(HIDDEN)}|{_QUOTED}|{_BARE}(?:;\s*[^\s=;,'"]+(?:=[^\s;,'"]*)?)*"""
)
_IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(@)")

#: Levels below which nothing is shown: what lies deeper is as good as unreadable.
_DEEPEST = 50


def is_secret(name: str) -> bool:
    """Whether a name, split at its humps, digits and separators, is that of a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if words and words[-1] in _TELLS:
        return False
    whole = [run.lower() for run in _RUN.findall(name)]  # "APIkey" has its hump elsewhere
    return any(
        word in _ALONE or word in _TOGETHER or _WITHIN.search(word) for word in (*words, *whole)
    ) or any(before + after in _TOGETHER for before, after in pairwise(words))


def hidden(value: Any, depth: int = 0) -> Any:
    """A copy of what JSON can hold, without its secrets."""
    if depth > _DEEPEST:
        return "(too deep to be shown)"
    if isinstance(value, Mapping):
        names_secret = _names_secret(value)
        return {
            name: HIDDEN
            if each and (is_secret(str(name)) or (names_secret and str(name).lower() == "value"))
            else hidden(each, depth + 1)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [
            HIDDEN if place and _is_given_to(value[place - 1], each) else hidden(each, depth + 1)
            for place, each in enumerate(value)
        ]
    return hidden_in_text(value) if isinstance(value, str) else value


def _names_secret(entry: Mapping[Any, Any]) -> bool:
    """Whether it is one of a list of settings, and its name is that of a secret."""
    return any(
        isinstance(said, str)
        and str(name).lower() in ("name", "key")
        and _NAME.fullmatch(said) is not None
        and is_secret(said)
        for name, said in entry.items()
    )


def _is_given_to(option: Any, value: Any) -> bool:
    """Whether one argument of a program is the secret that the one before it announces."""
    found = _ARGUMENT.fullmatch(option) if isinstance(option, str) else None
    return (
        bool(value)
        and found is not None
        and is_secret(found[1])
        and not (isinstance(value, str) and value.startswith("-"))
    )


def hidden_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what a job says of its progress: a number is a measure, whatever its name."""
    return {
        name: each if isinstance(each, int | float) else hidden({name: each})[name]
        for name, each in figures.items()
    }


def hidden_in_text(text: str) -> str:
    """Prose, such as an error, without what looks like a secret; once more changes nothing."""
    for named in (_NAMED, _OPTION, _ENTRY):
        text = "".join(_without_values(text, named))
    return _IN_URL.sub(rf"\g<1>{HIDDEN}\g<2>", text)


def _without_values(text: str, named: re.Pattern[str]) -> Iterator[str]:
    """What of a text stays, and what stands for the rest."""
    begin = 0
    for found in named.finditer(text):
        before, name = found.groups("")
        if found.start(2) < begin or not (
            is_secret(name) or f"{before}{name}".lower() in _TOGETHER
        ):
            continue
        kind = _COOKIES if "cookie" in name.lower() else _VALUE
        value = kind.match(text, found.end())
        if value is not None:
            yield text[begin : value.start()] + HIDDEN
            begin = value.end()
    yield text[begin:]


def restored(edited: Any, original: Any) -> Any:
    """What somebody has made of :func:`hidden`'s answer, with the secrets that were left alone."""
    if edited == hidden(original) and not isinstance(original, Mapping | list):
        return original
    if isinstance(edited, Mapping) and isinstance(original, Mapping):
        return {
            name: original[name]
            if each == HIDDEN and name in original
            else restored(each, original.get(name))
            for name, each in edited.items()
        }
    if isinstance(edited, list) and isinstance(original, list):
        padded = [*original, *[None] * len(edited)]
        return [
            _given_to(edited[place - 1], original, place)
            if place and each == HIDDEN and _is_given_to(edited[place - 1], each)
            else restored(each, padded[place])
            for place, each in enumerate(edited)
        ]
    return edited


def _given_to(option: Any, arguments: list[Any], place: int) -> Any:
    """What an option was given among these arguments: at this place, or wherever it stood."""
    for each in (place, *range(1, len(arguments))):
        if each < len(arguments) and arguments[each - 1] == option:
            return arguments[each]
    return HIDDEN
