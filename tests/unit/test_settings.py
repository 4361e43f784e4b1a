"""Settings: where each comes from, and what is refused before anything is sent anywhere."""

from __future__ import annotations

import math
import os
import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from synmanager.archiver import Archiver
from synmanager.errors import ConfigurationError
from synmanager.settings import VARIABLES, Settings, load_settings, parse_url
from synmanager.train import TrainConsumerOperator, TrainProducerOperator
from synmanager.worker import Worker

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def load(environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
    return load_settings(**arguments, environ=environ or {})


class TestBroker:
    def test_without_any_setting_it_is_rabbitmq_on_localhost(self) -> None:
        address = load().address
        assert (address.scheme, address.host, address.port) == ("amqp", "localhost", None)
        assert (address.username, address.password, address.path) == (None, None, "")

    @pytest.mark.parametrize(
        ("value", "scheme"),
        [
            ("rabbitmq", "amqp"),
            ("RabbitMQ", "amqp"),
            ("redis", "redis"),
            ("sqlite", "sqlite"),
            ("sqlite:///jobs.db", "sqlite"),
            ("memory", "memory"),
            (" memory ", "memory"),
            ("amqp://", "amqp"),
            ("amqps://mq.example", "amqps"),
            ("redis://mq.example/3", "redis"),
            ("rediss://mq.example", "rediss"),
            ("memory:///name", "memory"),
            ("AMQP://mq.example", "amqp"),
        ],
    )
    def test_a_name_or_a_url_chooses_it(self, value: str, scheme: str) -> None:
        assert load({"SYNMANAGER_BACKEND": value}).address.scheme == scheme
        assert load(url=value).address.scheme == scheme

    def test_every_part_of_a_url(self) -> None:
        address = parse_url("amqps://al%2Fice:p%40ss%23@mq.example:5671/grid%2Fone?cafile=/etc/ca")
        assert address.scheme == "amqps"
        assert (address.host, address.port) == ("mq.example", 5671)
        assert (address.username, address.password) == ("al/ice", "p@ss#")
        assert address.path == "grid/one"
        assert address.options == {"cafile": "/etc/ca"}

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("sqlite:///jobs.db", "jobs.db"),
            ("sqlite:////data/jobs.db", "/data/jobs.db"),
            ("sqlite:////data/a%20b%3Fc.db", "/data/a b?c.db"),
        ],
    )
    def test_a_file(self, url: str, path: str) -> None:
        address = load(url=url).address
        assert (address.path, address.options) == (path, {})

    @pytest.mark.parametrize("url", ["sqlite", "sqlite://", "sqlite:///"])
    @pytest.mark.parametrize(
        ("environ", "state"),
        [
            ({"HOME": "/home/a"}, "/home/a/.local/state"),
            ({"HOME": "/home/a", "XDG_STATE_HOME": "/state"}, "/state"),
            ({"HOME": "/home/a", "XDG_STATE_HOME": "relative"}, "/home/a/.local/state"),
            ({}, os.path.expanduser("~/.local/state")),
        ],
    )
    def test_the_file_that_is_not_named(
        self, url: str, environ: dict[str, str], state: str
    ) -> None:
        address = load(environ, url=url).address
        assert address.path == f"{state}/synmanager/jobs.db"
        assert address.options == {"mkdir": "true"}

    def test_an_ipv6_address(self) -> None:
        address = parse_url("redis://[::1]:6379/0")
        assert (address.host, address.port) == ("::1", 6379)

    def test_the_url_argument_wins_over_the_environment(self) -> None:
        settings = load({"SYNMANAGER_BACKEND": "redis://there:1"}, url="amqp://here:2")
        assert (settings.address.scheme, settings.address.host) == ("amqp", "here")
        assert settings.address.port == 2

    @pytest.mark.parametrize("port", [5673, "5673"])
    def test_host_and_port_arguments_win_over_the_url(self, port: int | str) -> None:
        address = load({"SYNMANAGER_BACKEND": "amqp://there:1/vhost"}, host="here", port=port)
        assert (address.address.host, address.address.port) == ("here", 5673)
        assert address.address.path == "vhost"

    def test_host_alone_keeps_the_rest_of_the_url(self) -> None:
        address = load({"SYNMANAGER_BACKEND": "amqp://u:p@there:7/v"}, host="here").address
        assert (address.host, address.port, address.username, address.path) == ("here", 7, "u", "v")

    def test_it_is_read_when_an_operator_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_BACKEND", "memory")
        operator = TrainProducerOperator()
        monkeypatch.setenv("SYNMANAGER_BACKEND", "no such thing")
        operator.connect()
        operator.disconnect()
        with pytest.raises(ConfigurationError):
            TrainProducerOperator()


class TestCredentials:
    def test_from_the_environment(self) -> None:
        environ = {"SYNMANAGER_USERNAME": "alice", "SYNMANAGER_PASSWORD": "s/e#c@ret%2F"}
        address = load(environ).address
        assert (address.username, address.password) == ("alice", "s/e#c@ret%2F")

    def test_those_of_the_url_win(self) -> None:
        environ = {"SYNMANAGER_USERNAME": "alice", "SYNMANAGER_PASSWORD": "a"}
        address = load(environ, url="amqp://bob:b@host").address
        assert (address.username, address.password) == ("bob", "b")

    def test_a_user_without_a_password(self) -> None:
        with pytest.raises(ConfigurationError, match="SYNMANAGER_PASSWORD"):
            load({"SYNMANAGER_USERNAME": "alice"})

    def test_a_password_without_a_user(self) -> None:
        with pytest.raises(ConfigurationError, match="SYNMANAGER_USERNAME"):
            load({"SYNMANAGER_PASSWORD": "canary"})

    def test_the_password_of_the_user_that_the_url_names(self) -> None:
        address = load({"SYNMANAGER_PASSWORD": "secret"}, url="amqp://bob@host").address
        assert (address.username, address.password) == ("bob", "secret")

    def test_the_url_s_user_never_gets_another_user_s_password(self) -> None:
        environ = {"SYNMANAGER_USERNAME": "alice", "SYNMANAGER_PASSWORD": "hers"}
        assert load(environ, url="amqp://bob@host").address.password is None


REFUSED_URLS = {
    "empty": "",
    "blank": "  \t",
    "a name nobody knows": "kafka",
    "a scheme nobody knows": "kafka://host",
    "garbage": "\x00\x01\x02",
    "punctuation": "?!",
    "no scheme": "://host",
    "host alone": "localhost:5672",
    "a Windows path": "C:\\queues",
    "port 0": "amqp://host:0",
    "port 70000": "amqp://host:70000",
    "port abc": "amqp://host:abc",
    "negative port": "amqp://host:-1",
    "unclosed bracket": "amqp://[::1",
    "space in the host": "amqp://ho st",
    "slash in the password": "amqp://alice:ca/nary@host",
    "slash in a password that begins like a port": "amqp://alice:12/34@host",
    "hash in the password": "amqp://alice:ca#nary@host",
    "hash in a password that begins like a port": "amqp://alice:12#34@host",
    "question mark in the password": "amqp://alice:12?34@host",
    "an option without a value": "redis://host?prefix",
    "an option with a blank value": "rediss://host?cafile=",
    "an option given twice": "redis://host?prefix=a&prefix=b",
    "an option that memory does not know": "memory://?cafile=x",
    "a file for a host": "sqlite://jobs.db",
    "a file on a host": "sqlite://host/jobs.db",
    "a home that nobody expands": "sqlite:///~/jobs.db",
    "an option that a file does not know": "sqlite:///jobs.db?cafile=x",
}


@pytest.mark.parametrize("url", REFUSED_URLS.values(), ids=REFUSED_URLS.keys())
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_url_that_cannot_work(url: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "argument":
        with pytest.raises(ConfigurationError):
            TrainProducerOperator(url=url)
    elif "\0" not in url:  # which no environment can hold
        monkeypatch.setenv("SYNMANAGER_BACKEND", url)
        with pytest.raises(ConfigurationError):
            TrainProducerOperator()


@pytest.mark.parametrize("url", [None, 5672, b"amqp://host"])
def test_a_url_that_is_no_string(url: Any) -> None:
    with pytest.raises(ConfigurationError):
        parse_url(url)


def test_an_unknown_backend_is_answered_with_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"rabbitmq.*redis.*memory.*amqps://.*rediss://"):
        load(url="kafka")
    with pytest.raises(ConfigurationError, match=r"'kafka'.*rabbitmq.*amqps://"):
        load(url="kafka://host")


@pytest.mark.parametrize("port", [0, 70000, -1, "abc", "", " ", "0", "+1", "1.5", 5.0, True, "²"])
def test_a_port_that_cannot_be(port: Any) -> None:
    for make in (TrainProducerOperator, TrainConsumerOperator):
        with pytest.raises(ConfigurationError, match="port"):
            make("localhost", port, url="memory")


def test_a_port_of_many_digits() -> None:
    with pytest.raises(ConfigurationError, match="port"):
        load(port="9" * 5000)


REFUSED_HOSTS = {
    "empty": "",
    "blank": " ",
    "a space": "a b",
    "a URL": "amqp://host",
    "a user": "user:pw@host",
    "a number": 7,
    "bytes": b"host",
    "an empty label": "mq..example",
    "a dot first": ".mq",
    "only a dot": ".",
    "a port": "name:5672",
    "a port after an address": "127.0.0.1:5672",
    "a port after an IPv6 address": "[::1]:5672",
    "half an IPv6 address": "[::1",
    "a name in brackets": "[mq]",
    "an IPv6 address too long": "1:2:3:4:5:6:7:8:9",
    "several": "a,b",
    "several with ports": "a:1,b:2",
    "a label too long": "x" * 64,
    "a name too long": ".".join(["x" * 60] * 5),
    "what IDNA cannot write": "ü" * 64,
    "what IDNA forbids": "mq\ue000",
    "a lone surrogate": "mq\ud800",
    "a null character": "mq\0",
    "an escape code": "mq\x1b[2J",
    "a line break": "mq\r\nhost",
    "percent-encoding": "mq%20",
    "a zone that is none": "fe80::1%a b",
}


@pytest.mark.parametrize("host", REFUSED_HOSTS.values(), ids=REFUSED_HOSTS.keys())
def test_a_host_that_cannot_be(host: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^host must"):
        TrainProducerOperator(host, url="memory")
    for operator in (TrainProducerOperator(url="memory"), TrainConsumerOperator(url="memory")):
        operator.host = host
        with pytest.raises(ConfigurationError, match=r"^host must"):
            operator.connect()
        assert not operator.is_connected()


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("mq_1.example", None),
        ("mq.example.", None),
        ("x" * 63, None),
        ("10.0.0.1", None),
        ("bücher.example", None),
        ("::1", None),
        ("[::1]", "::1"),
        ("fe80::1%eth0", None),
        ("::ffff:10.0.0.1", None),
    ],
)
def test_a_host_that_can_be(host: str, known: str | None) -> None:
    assert load(host=host).address.host == (known or host)
    operator = TrainProducerOperator(host, url="memory")
    with operator:
        assert operator.is_connected()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("amqp://mq..example", "host must be a name"),
        ("amqp://me:pw@a,b..c:5672/", "host must be a name"),
        ("amqp://me:pw@a:5672,b:0/", "port must be"),
        ("amqp://me:pw@a,b:65536/", "host and port"),
        ("amqp://me:pw@a,,b/", "none of them empty"),
        ("amqp://me:pw@a,/", "none of them empty"),
        ("amqp://me:pw@,a/", "none of them empty"),
        ("amqp://me:pw@a,[::1/", "host and port"),
        ("amqp://me:pw@a:1, b:2/", "hosts.*without spaces"),
        ("amqp://me:pw@a:1 ,b:2/", "hosts.*without spaces"),
        ("amqp://me:pw@a:1,\tb:2/", "hosts.*without spaces"),
        ("amqp://me:pw@a:1,\n  b:2/", "hosts.*without spaces"),
        ("amqp://me:p\rw@a:1/", "a tab or a line break"),
        ("amqp://me:pw@a,amqp://b", "scheme.*written once"),
        ("amqp://me:pw@a,AMQPS://me:pw@b/grid", "scheme.*written once"),
        ("redis+sentinel://redis+sentinel://b/grid/0", "scheme.*written once"),
        ("amqp://me:pw@a,me:pw@b/", "user and password.*once.*%40.*%2C"),
        ("amqp://a:5672,me:pw@b/", "user and password.*once"),
        ("amqp://a,me:pw@b/", "user and password.*once"),
        ("amqp://a,me@b/", "user and password.*once"),
        ("amqp://me:pw@,x@b/", "user and password.*once"),
        ("redis://:a,pw@c:6379,d:6379/0", "redis.*sentinel.*cluster"),
        ("memory://me:pw@a,b:7/x", "memory:// has one host, not 2"),
        ("sqlite://a,b/jobs.db", "a file has no host"),
        ("amqp://user:p%FFw@host", "password is not UTF-8"),
        ("amqp://user:p%00w@host", "password holds a null"),
        ("amqp://us%FFer:pw@host", "user name is not UTF-8"),
        ("amqp://user:p\udcffw@host", "password is not text"),
        ("amqp://host/%FF", "path is not UTF-8"),
        ("amqps://host/?cafile=/a%00b", "option 'cafile' holds a null"),
    ],
)
def test_a_url_that_no_broker_can_be_told(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as error:
        TrainProducerOperator(url=url)
    assert "pw" not in str(error.value)


def test_a_comma_in_a_password_is_no_second_host() -> None:
    address = parse_url("amqp://user:a,b@host")
    assert (address.password, address.hosts) == ("a,b", (("host", None),))


def test_what_looks_like_a_second_scheme_is_a_path() -> None:
    address = parse_url("amqp://a:5672,amqp//grid")
    assert (address.hosts, address.path) == ((("a", 5672), ("amqp", None)), "/grid")


def test_host_and_port_are_one_hosts() -> None:
    environ = {"SYNMANAGER_BACKEND": "amqp://a:1,b:2/grid"}
    settings = load(environ)
    assert settings.address.hosts == (("a", 1), ("b", 2))
    assert settings.at("a", 1) == settings  # as an operator's connect() repeats them
    for host in "a", "c":
        assert load(environ, host=host).address.hosts == ((host, 1),)
    assert settings.at("c", 3).address.hosts == (("c", 3),)
    with pytest.raises(ConfigurationError, match="port is one host's"):
        settings.at(None, 3)


def test_credentials_in_the_environment_that_are_no_text() -> None:
    for secret, why in (("p\udcffw", "not text"), ("p\0w", "null")):
        environ = {"SYNMANAGER_USERNAME": "alice", "SYNMANAGER_PASSWORD": secret}
        with pytest.raises(ConfigurationError, match=f"^SYNMANAGER_PASSWORD.*{why}"):
            load(environ)


@pytest.mark.parametrize(("name", "value"), [("host", "amqp://x"), ("port", "abc"), ("port", 0)])
def test_a_host_or_port_set_after_construction_is_checked_at_connect(name: str, value: Any) -> None:
    operator = TrainProducerOperator(url="memory")
    setattr(operator, name, value)
    with pytest.raises(ConfigurationError, match=name):
        operator.connect()
    assert not operator.is_connected()


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("value", ["", "  ", "\t"])
def test_a_blank_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load({variable: value})


TIMES = {
    "SYNMANAGER_LEASE": "lease",
    "SYNMANAGER_TIMEOUT": "timeout",
    "SYNMANAGER_HEARTBEAT": "heartbeat",
    "SYNMANAGER_RETRY_DELAY": "retry_delay",
    "SYNMANAGER_RECONNECT": "reconnect",
    "SYNMANAGER_GRACE": "grace",
    "SYNMANAGER_TIME_LIMIT": "time_limit",
}
NUMBERS = {"SYNMANAGER_MAX_ATTEMPTS": "max_attempts", "SYNMANAGER_MAX_BYTES": "max_bytes"}
IN_THE_ADDRESS = {"lease", "timeout", "heartbeat"}


@pytest.mark.parametrize(("variable", "name"), {**TIMES, **NUMBERS}.items())
def test_a_variable_sets_its_field(variable: str, name: str) -> None:
    settings = load({variable: "7"})
    assert getattr(settings.address if name in IN_THE_ADDRESS else settings, name) == 7


@pytest.mark.parametrize("variable", TIMES)
@pytest.mark.parametrize("value", ["-1", "soon", "nan", "1e9999x", "1,5", "-inf"])
def test_a_time_that_cannot_be(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load({variable: value})


@pytest.mark.parametrize("variable", sorted(set(TIMES) - {"SYNMANAGER_RECONNECT"}))
@pytest.mark.parametrize("value", ["inf", "1e9"])
def test_an_absurd_time(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load({variable: value})


@pytest.mark.parametrize(
    "variable", ["SYNMANAGER_LEASE", "SYNMANAGER_TIMEOUT", "SYNMANAGER_TIME_LIMIT"]
)
def test_no_time_at_all(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load({variable: "0"})


def test_reconnecting_without_end_can_be_asked_for() -> None:
    assert load({"SYNMANAGER_RECONNECT": "inf"}).reconnect == math.inf
    assert load({"SYNMANAGER_RECONNECT": "0"}).reconnect == 0


@pytest.mark.parametrize("variable", NUMBERS)
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", "1e3", "9" * 30, "9" * 5000])
def test_a_number_that_cannot_be(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load({variable: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease", -1),
        ("lease", 0),
        ("lease", math.inf),
        ("lease", math.nan),
        ("lease", "soon"),
        ("lease", []),
        ("lease", True),
        ("max_attempts", True),
        ("max_attempts", 0),
        ("max_attempts", -1),
        ("max_attempts", 2.5),
        ("max_attempts", "many"),
    ],
)
def test_an_argument_that_cannot_be_is_named_in_every_constructor(name: str, value: Any) -> None:
    options: dict[str, Any] = {"url": "memory", name: value}
    for make in (
        lambda: TrainProducerOperator(**options),
        lambda: TrainConsumerOperator(**options),
        lambda: Worker({"train": print}, **options),
        lambda: Archiver(print, **options),
    ):
        with pytest.raises(ConfigurationError, match=f"^{name} must"):
            make()


def test_arguments_win_over_variables() -> None:
    environ = {"SYNMANAGER_LEASE": "7", "SYNMANAGER_MAX_ATTEMPTS": "8"}
    settings = load(environ, lease=70, max_attempts=80)
    assert (settings.address.lease, settings.max_attempts) == (70, 80)


def test_a_time_limit_is_seconds_or_a_timedelta() -> None:
    assert load(time_limit=7.5).time_limit == 7.5
    assert load(time_limit=timedelta(days=30)).time_limit == 30 * 86_400
    assert load({"SYNMANAGER_TIME_LIMIT": "3600"}, time_limit=timedelta(minutes=1)).time_limit == 60
    refused: list[Any] = [timedelta(0), timedelta(days=31), True, [], "soon", Decimal("NaN")]
    for wrong in (*refused, 10**400):
        with pytest.raises(ConfigurationError, match=r"^time_limit must be a number of seconds"):
            load(time_limit=wrong)


def test_what_is_given_instead_is_shown_on_one_short_line() -> None:
    class Awkward:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    for wrong in ("\x1b[2J\n" * 10_000, Awkward()):
        arguments: tuple[dict[str, Any], ...] = (
            {"port": wrong}, {"lease": wrong}, {"max_attempts": wrong}, {"host": wrong},
        )  # fmt: skip
        for argument in arguments:
            with pytest.raises(ConfigurationError) as error:
                load(**argument)
            assert str(error.value).isprintable()
            assert len(str(error.value)) < 400


def test_the_defaults() -> None:
    settings = load()
    address = settings.address
    assert (address.lease, address.timeout, address.heartbeat) == (60, 30, 20)
    assert (settings.max_attempts, settings.retry_delay, settings.grace) == (5, 1, 25)
    assert settings.reconnect is None
    assert settings.time_limit is None
    assert settings.max_bytes == 8 * 1024 * 1024


class TestPage:
    """``docs/settings.md`` says what the code does."""

    def test_it_lists_every_variable_and_no_other(self) -> None:
        rows = re.findall(r"^\| `(SYNMANAGER_\w+)` \|", PAGE.read_text(), re.MULTILINE)
        assert sorted(rows) == sorted(VARIABLES)
        named = set(re.findall(r"SYNMANAGER_\w+", PAGE.read_text()))
        assert named == set(VARIABLES)

    def test_its_defaults_are_the_code_s(self) -> None:
        settings = load()
        for variable, name in {**TIMES, **NUMBERS}.items():
            row = re.search(rf"^\| `{variable}` \|.*$", PAGE.read_text(), re.MULTILINE)
            assert row is not None
            default = row[0].split("|")[4].strip()
            value = getattr(settings.address if name in IN_THE_ADDRESS else settings, name)
            if value is not None:
                assert float(default.split()[0].replace(",", "")) == value, variable
