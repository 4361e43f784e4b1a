"""Which backend a URL scheme means, without loading any that is not asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import synmanager
from synmanager.backends import Address, create_backend, known_schemes
from synmanager.backends.memory import MemoryBackend
from synmanager.backends.registry import ENTRY_POINT_GROUP, NAMES
from synmanager.errors import ConfigurationError
from synmanager.settings import parse_url

SOURCE = Path(synmanager.__file__).parents[1]
DRIVERS = {"pika", "redis", "kombu"}


def run(code: str, *options: str) -> list[str]:
    """Run code in a fresh interpreter that sees this package; return the words it prints."""
    preamble = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); "
    done = subprocess.run(
        [sys.executable, *options, "-c", preamble + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import synmanager",
        "import synmanager.backends",
        "from synmanager.backends import known_schemes; known_schemes()",
        "from synmanager.backends import Address, create_backend;"
        "create_backend(Address('memory')).open()",
    ],
    ids=["package", "backends", "schemes", "memory"],
)
def test_no_driver_is_loaded_before_it_is_used(code: str) -> None:
    loaded = set(run(f"{code}\nprint(*sys.modules)"))
    assert "synmanager" in loaded
    assert not loaded & DRIVERS


def test_the_costly_reader_of_entry_points_is_not_loaded_either() -> None:
    loaded = run("import synmanager.backends\nprint(*sys.modules)")
    assert "importlib.metadata" not in loaded


def test_memory_is_found() -> None:
    backend = create_backend(Address("memory"))
    assert isinstance(backend, MemoryBackend)
    assert not backend.is_open


def test_every_name_stands_for_a_known_scheme() -> None:
    assert set(NAMES) == {"rabbitmq", "redis", "valkey", "sqlite", "memory"}
    assert set(NAMES.values()) <= set(known_schemes())
    assert {"amqp", "amqps", "redis", "rediss", "sqlite", "memory"} <= set(known_schemes())


@pytest.mark.parametrize("scheme", ["", "nats", "AMQP", "rabbitmq", "http"])
def test_an_unknown_scheme_lists_the_known(scheme: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        create_backend(Address(scheme, host="somewhere", password="canary"))
    assert repr(scheme) in str(error.value)
    for known in known_schemes():
        assert known in str(error.value)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    ("scheme", "command"),
    [
        ("amqp", "pip install pika"),
        ("amqps", "pip install pika"),
        ("redis", "pip install -e '.[redis]'"),
        ("rediss", "pip install -e '.[redis]'"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_what_brings_it(
    scheme: str, command: str
) -> None:
    code = f"""
sys.modules.update(pika=None, redis=None)  # as where they are not installed
from synmanager.backends import Address, create_backend
from synmanager.errors import ConfigurationError
try:
    create_backend(Address({scheme!r}))
except ConfigurationError as error:
    print(error)
"""
    message = " ".join(run(code))
    assert message.startswith(f"{scheme}:// needs the package ")
    assert message.endswith(f" {command}")


def test_no_backend_has_an_option_that_it_does_not_know() -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        create_backend(Address("memory", options={"colour": "blue"}))


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a distribution that brings a backend; return its scheme."""
    (tmp_path / "carrier_pigeons.py").write_text(
        "from synmanager.backends.memory import MemoryBackend\n"
        "class PigeonBackend(MemoryBackend):\n"
        "    pass\n"
    )
    information = tmp_path / "carrier_pigeons-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: carrier-pigeons\nVersion: 1.0\n"
    )
    (information / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\npigeon = carrier_pigeons:PigeonBackend\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "carrier_pigeons", raising=False)
    return "pigeon"


def test_a_third_party_registers_a_backend(third_party: str) -> None:
    assert third_party in known_schemes()
    assert "carrier_pigeons" not in sys.modules
    backend = create_backend(Address(third_party, path="loft"))
    assert type(backend).__name__ == "PigeonBackend"
    assert backend.address == Address(third_party, path="loft")
    assert isinstance(backend, MemoryBackend)


def test_a_third_party_is_listed_among_the_known(third_party: str) -> None:
    with pytest.raises(ConfigurationError, match=third_party):
        create_backend(Address("nats"))


def test_a_third_party_cannot_take_the_place_of_a_built_in(
    third_party: str, tmp_path: Path
) -> None:
    points = tmp_path / "carrier_pigeons-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[{ENTRY_POINT_GROUP}]\nmemory = carrier_pigeons:PigeonBackend\n")
    assert type(create_backend(Address("memory"))) is MemoryBackend


def test_a_third_party_s_scheme_is_a_bare_name_as_well(third_party: str) -> None:
    for name in (third_party, third_party.upper()):
        assert parse_url(name) == Address(third_party)
    with pytest.raises(ConfigurationError, match=f"names .*{third_party}"):
        parse_url("nats")


def test_a_built_in_scheme_that_is_no_name_stays_none(third_party: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a URL nor"):
        parse_url("amqp")
