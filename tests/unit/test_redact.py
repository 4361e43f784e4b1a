"""Which names are those of secrets, and where a secret begins and ends in prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synmanager.redact import HIDDEN, hidden, hidden_figures, hidden_in_text

SECRET = (
    "DBPassword", "JWTSecret", "AWSSecretAccessKey", "aws_access_key_id", "APIkey", "APIKEY",
    "apiKeys", "passwords", "mypasswords", "passwordHash", "passphrase", "pwd1", "secretkey",
    "SECRETKEY", "accesstoken", "access_tokens", "refreshTokens", "encryption_key", "signing-keys",
    "SASKey", "dbpass", "dbPass", "sessionid", "session_id", "otp", "pass", "private_key_pem",
    "OAuthToken", "connectionString",
)  # fmt: skip
PLAIN = (
    "key", "bypass", "tokens", "max_tokens", "maxTokens", "session", "sessions", "id", "keyboard",
    "primary_key", "passenger", "secretary", "authors", "lowpass", "hotpink", "spin", "n_passes",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_a_name_of_a_secret(name: str) -> None:
    assert hidden({name: "x"}) == {name: HIDDEN}


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_that_only_sounds_like_one(name: str) -> None:
    assert hidden({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "text",
    [
        "authToken=sesame", "{'dbPassword': 'sesame'}", "accessToken=sesame", "DBPassword: sesame",
        "no: AWSSecretAccessKey = sesame", "x API key: sesame", "{'tokens': 1, 'otp': 'sesame'}",
        "Authorization: Basic sesame", "{'Authorization': 'Basic sesame'}", "Basic: token=sesame",
        'Authorization: Digest username="x", response="sesame"', "Cookie: a=b; c=sesame; d=1",
        "curl -H 'Authorization: token sesame' --url x", "curl --verbose --token sesame",
        "['curl', '--dbPassword', 'sesame']", 'in {\\"password\\": \\"open sesame\\"}',
        "password => sesame", "password=b'open sesame'", "password='open sesame",
        'password: "open sesame', "dbPasswort: sesame", "github_tokens=['x', 'sesame']",
        "passwords = ('a', 'sesame')",
        "https://x.example/?a=1&access_token=sesame", "password: (hidden), token=sesame",
    ],
)  # fmt: skip
def test_in_prose(text: str) -> None:
    assert "sesame" not in hidden_in_text(text)
    assert HIDDEN in hidden_in_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "tokens=512, max_tokens: 9, key=4, session = 2, monkey: 1; compass = x, passes=3",
        "KeyError: 'lr'; authors: 3, auth failed: no such user --no-token --verbose",
        "jwt.exceptions.InvalidTokenError: Not enough segments; AuthError: no such user",
        "NoCredentialsError: Unable to locate them; LocalTokenNotFoundError: Token is required",
        "ExpiredSignatureError: Signature has expired; auth_error: none, token_expired: true",
    ],
)
def test_prose_without_secrets_stays(text: str) -> None:
    assert hidden_in_text(text) == text


def test_only_the_value_is_hidden() -> None:
    text = "a=1 token=x step 2, curl -H 'Cookie: a=b; c=d' --token x -v; Authorization: Basic x y"
    assert hidden_in_text(text) == (
        "a=1 token=(hidden) step 2, curl -H 'Cookie: (hidden)' --token (hidden) -v; "
        "Authorization: (hidden) y"
    )


pieces = st.sampled_from(
    ["password", "authToken", "a", "--token", "API key", "Cookie", "Authorization", "=", ": ", " ",
     "'", '"', "\\", ";", ",", "}", ")", "://u:", "@", "\n", HIDDEN, "Basic ", "x", "=>", "é", "b'"]
)  # fmt: skip


@given(st.lists(pieces, max_size=14).map("".join))
def test_once_more_changes_nothing(text: str) -> None:
    once = hidden_in_text(text)
    assert hidden_in_text(once) == once


def test_a_number_among_figures_is_a_measure() -> None:
    said = {"token_accuracy": 0.5, "pin_count": 3, "token": "sesame"}
    assert hidden_figures(said) == {**said, "token": HIDDEN}
