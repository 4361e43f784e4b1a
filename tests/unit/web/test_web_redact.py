"""Secrets are hidden by their names, and come back when a job was edited."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synmanager.redact import HIDDEN, hidden, hidden_in_text, restored

SECRET = (
    "password", "PASSWORD", "db_password", "dbPassword", "passwd", "api_key", "apikey", "api-key",
    "authToken", "token", "secret", "client_secret", "private_key", "credentials", "Authorization",
    "access_key", "cookie",
)  # fmt: skip
PLAIN = ("tokenizer", "passes", "keys", "epochs", "monkey", "author", "compass", "pinned", "lr")


@pytest.mark.parametrize("name", SECRET)
def test_by_name(name: str) -> None:
    assert hidden({name: "sesame", "deep": [{name: {"a": "sesame"}}]}) == {
        name: HIDDEN, "deep": [{name: HIDDEN}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        (["train.py", "--password", HIDDEN, "--lr", "1"], "sesame"),
        (["-storepass", HIDDEN, "--token", "--verbose", "--pin", HIDDEN], "sesame"),
        ({"env": [{"name": "DB_PASSWORD", "value": HIDDEN}]}, "sesame"),
        ({"Key": "api-key", "Value": HIDDEN, "on": True}, {"of": "sesame"}),
    ],
)
def test_of_a_program_s_arguments_and_of_settings(shown: Any, value: Any) -> None:
    def with_secrets(what: Any) -> Any:
        if isinstance(what, dict):
            return {name: with_secrets(each) for name, each in what.items()}
        if isinstance(what, list):
            return [with_secrets(each) for each in what]
        return value if what == HIDDEN else what

    assert hidden(with_secrets(shown)) == shown
    assert restored(shown, with_secrets(shown)) == with_secrets(shown)
    text = hidden_in_text(f"cannot read {json.dumps(with_secrets(shown))}")
    assert "sesame" not in text
    assert hidden_in_text(text) == text


@pytest.mark.parametrize(
    "value",
    [
        ["--tokenizer", "bert", "--max-tokens", "512", "password", "token"],
        ["--token"], ["--password", ""], [["--password"], "x"],
        {"name": "resnet", "value": 3}, {"name": "Reset the password", "value": "x"},
        {"name": ["password"], "value": "x"}, {"title": "password", "value": "x"},
        {"name": "password", "model": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_and_settings_that_are_no_secrets(value: Any) -> None:
    assert hidden(value) == value


def test_a_program_s_arguments_that_were_edited() -> None:
    before = ["--password", "sesame", "--pin", "1", "--pin", "2"]
    for after, run in (
        (["-v", *hidden(before)], ["-v", *before[:5], "1"]),  # which one nobody can tell
        (["--pin", HIDDEN, "--password", "new"], ["--pin", "1", "--password", "new"]),
        (["--token", HIDDEN], ["--token", HIDDEN]),
    ):
        assert restored(after, before) == run


@pytest.mark.parametrize("name", PLAIN)
def test_what_only_sounds_like_one_is_shown(name: str) -> None:
    assert hidden({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "text",
    [
        "password=sesame", 'File "x", {"db_password": "sesame"}', "api_key: sesame, more",
        "amqp://user:sesame@mq.example/", "Authorization: Bearer sesame", "token='sesame'",
        '{"db_password": {"user": "me", "is": "sesame"}}', "java -storepass sesame",
    ],
)  # fmt: skip
def test_in_prose(text: str) -> None:
    assert "sesame" not in hidden_in_text(text)
    assert HIDDEN in hidden_in_text(text)


def test_prose_without_secrets_stays() -> None:
    text = "ValueError: the tokenizer has 3 keys at https://models.example:443/a@b"
    assert hidden_in_text(text) == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner | st.sampled_from(["--password", "--lr"]), max_size=4)
        | st.dictionaries(st.sampled_from(["password", "lr", "token", "a"]), inner, max_size=3)
        | st.fixed_dictionaries({"name": st.sampled_from(["password", "a"]), "value": inner})
    ),
    max_leaves=12,
)


@given(values)
def test_what_was_not_edited_comes_back_as_it_was(value: Any) -> None:
    assert restored(json.loads(json.dumps(hidden(value))), value) == value


def test_what_was_edited_is_as_it_was_written() -> None:
    original = {"password": "sesame", "lr": 1, "deep": [{"token": "x"}]}
    edited = {"password": HIDDEN, "lr": 2, "deep": [{"token": "new"}], "more": HIDDEN}
    assert restored(edited, original) == {
        "password": "sesame", "lr": 2, "deep": [{"token": "new"}], "more": HIDDEN,
    }  # fmt: skip
