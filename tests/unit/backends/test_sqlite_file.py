"""The file: where it may lie, whose it is, and what becomes of it under the client's hands."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
from sqlite_file import SPEC, Jobs, publish, take
from threads import in_thread, until

from synmanager.backends import Address, QueueBackend
from synmanager.backends.sqlite import SQLiteBackend, file, tables
from synmanager.backends.sqlite.faults import why_not_written
from synmanager.backends.sqlite.file import bells_of
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    PublishInterrupted,
    PublishRefused,
    TopologyError,
)


class TestAddress:
    @pytest.mark.parametrize("path", ["", "~/jobs.db", ":memory:", "a\0b"])
    def test_no_path_of_a_file(self, path: str) -> None:
        with pytest.raises(ConfigurationError, match="sqlite://"):
            SQLiteBackend(Address("sqlite", path=path))

    @pytest.mark.parametrize("options", [{"cafile": "x"}, {"mkdir": "perhaps"}])
    def test_unknown_options(self, options: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError, match="mkdir"):
            SQLiteBackend(Address("sqlite", path="jobs.db", options=options))

    def test_a_relative_path_is_of_the_directory_of_the_beginning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        client = SQLiteBackend(Address("sqlite", path="jobs.db"))
        monkeypatch.chdir("/")
        client.open()
        client.close()
        assert (tmp_path / "jobs.db").exists()

    def test_a_library_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 33, 0))
        with pytest.raises(ConfigurationError, match=r"3\.34"):
            SQLiteBackend(Address("sqlite", path="jobs.db"))


class TestPlace:
    def test_a_directory_that_is_missing(self, jobs: Jobs) -> None:
        jobs.path = jobs.path.parent / "missing" / "jobs.db"
        with pytest.raises(TopologyError, match=r"sqlite:////"):
            jobs.open()
        jobs.open(options={"mkdir": "true"})
        assert jobs.path.parent.stat().st_mode & 0o777 == 0o700

    def test_a_directory_in_its_place(self, jobs: Jobs) -> None:
        jobs.path.mkdir()
        with pytest.raises(TopologyError, match="is a directory"):
            jobs.open()

    def test_what_is_no_file(self, jobs: Jobs) -> None:
        os.mkfifo(jobs.path)
        with pytest.raises(TopologyError, match="a pipe or a socket, not a file"):
            jobs.open()
        with pytest.raises(TopologyError, match="is a directory"):
            SQLiteBackend(Address("sqlite", path="/")).open()

    @pytest.mark.parametrize("name", ["n" * 255, "loop/jobs.db", "loop", "file/jobs.db"])
    def test_what_no_path_can_be(self, jobs: Jobs, name: str) -> None:
        """Nobody is to wait until it can be."""
        directory = jobs.path.parent
        (directory / "loop").symlink_to(directory / "loop")
        (directory / "file").touch()
        jobs.path = directory / name
        with pytest.raises(TopologyError):
            jobs.open()

    def test_a_path_that_is_longer_than_sqlite_takes(self, jobs: Jobs) -> None:
        jobs.path = jobs.path.parent.joinpath(*["d" * 200] * 3, "jobs.db")
        jobs.path.parent.mkdir(parents=True)
        with pytest.raises(TopologyError, match="too long"):
            jobs.open()

    @pytest.mark.parametrize("of", ["file", "directory"])
    def test_a_link_leads_to_the_lock_and_the_bells_of_the_file(self, jobs: Jobs, of: str) -> None:
        """Else two would write at once who do not know of each other, and nobody hears the bell."""
        place = jobs.path.parent
        (place / "real").mkdir()
        link = place / "link"
        link.symlink_to(place / "real" if of == "directory" else place / "real" / "jobs.db")
        jobs.path = link / "jobs.db" if of == "directory" else link
        waiting = jobs.open()
        assert sorted(os.listdir(place)) == ["link", "real"]
        jobs.path = place / "real" / "jobs.db"
        other = jobs.open()
        join = in_thread(lambda: take(waiting, 30))
        until(lambda: any(not name.startswith(".") for name in os.listdir(bells_of(jobs.path))))
        publish(other)
        join()

    def test_a_link_that_leads_to_another_file_now(self, jobs: Jobs) -> None:
        link, first, second = (jobs.path.parent / name for name in ("link", "first", "second"))
        link.symlink_to(first)
        jobs.path = link
        client = jobs.open()
        publish(client)
        jobs.path = second
        jobs.open()
        (jobs.path.parent / "next").symlink_to(second)
        (jobs.path.parent / "next").rename(link)
        with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
            client.count(SPEC.name)
        client.open()
        assert client.count(SPEC.name).ready == 0

    @pytest.mark.parametrize(
        "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "virtiofs"]
    )
    def test_a_network_file_system_is_refused(
        self, jobs: Jobs, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.mount(jobs, kind, monkeypatch)
        with pytest.raises(TopologyError, match=kind):
            jobs.open()
        assert not os.listdir(jobs.path.parent)

    @pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "fuse.gocryptfs"])
    def test_a_local_one_is_not(
        self, jobs: Jobs, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.mount(jobs, kind, monkeypatch)
        jobs.open()

    def mount(self, jobs: Jobs, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the system say that the file lies on such a file system, in a local one."""
        place = jobs.path.parent / "with space"
        place.mkdir()
        mounts = jobs.path.parent / "mounts"
        real = str(place.resolve()).replace(" ", "\\040")
        mounts.write_text(
            "/dev/sda / ext4 rw 0 0\n"
            f"server:/x {real} {kind} rw 0 0\n"
            f"other:/y {real}er nfs rw 0 0\n"
        )
        monkeypatch.setattr(file, "_MOUNTS", str(mounts))
        jobs.path = place / "jobs.db"

    def test_the_log_names_the_file(self, jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        jobs.open()
        assert str(jobs.path) in caplog.text


class TestDurability:
    def test_the_log_is_written_ahead_and_synced_at_every_commit(self, jobs: Jobs) -> None:
        client = jobs.open()
        assert client._connections is not None
        (connection,) = client._connections._idle
        assert connection.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.db.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_a_log_that_somebody_switched_off_is_on_again(self, jobs: Jobs) -> None:
        """Also in a file that .recover has made."""
        jobs.open()
        jobs.close()
        assert jobs.execute("PRAGMA journal_mode = DELETE") == [("delete",)]
        reading = sqlite3.connect(jobs.path, isolation_level=None)
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM jobs").fetchall()
        with pytest.raises(BrokerUnavailable, match="is locked"):
            jobs.open(timeout=0)
        join = in_thread(lambda: jobs.open(timeout=60))
        reading.execute("COMMIT")
        join()
        assert jobs.execute("PRAGMA journal_mode") == [("wal",)]
        reading.close()


def test_a_queue_of_many_pages_is_removed_and_leaves_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PAGE", 2)
    client = jobs.open()
    publish(client, *[b"{}"] * 9)
    publish(client, *[b"{}"] * 3, delay=60)
    for _ in range(3):
        client.bury(take(client), "a reason")
    take(client)
    client.undeclare(SPEC)
    every = ("queues", "bindings", "jobs", "ready", "delayed", "leased", "dead")
    assert [jobs.execute(f"SELECT count(*) FROM {table}") for table in every] == [[(0,)]] * 7


class TestStrangers:
    def test_a_newer_synmanager_s(self, jobs: Jobs) -> None:
        client = jobs.open()
        publish(client)
        client.close()
        jobs.execute("PRAGMA user_version = 99")
        before = jobs.path.read_bytes()
        with pytest.raises(TopologyError, match=r"schema 99.*Update synmanager"):
            jobs.open()
        assert jobs.path.read_bytes() == before

    def test_another_program_s(self, jobs: Jobs) -> None:
        jobs.execute("CREATE TABLE precious (thing TEXT)")
        before = jobs.path.read_bytes()
        with pytest.raises(TopologyError, match="another program"):
            jobs.open()
        assert jobs.path.read_bytes() == before

    def test_no_database_at_all(self, jobs: Jobs) -> None:
        jobs.path.write_bytes(b"a diary, and quite a long one\n" * 100)
        before = jobs.path.read_bytes()
        with pytest.raises(TopologyError, match="not an SQLite database"):
            jobs.open()
        assert jobs.path.read_bytes() == before

    def test_an_empty_file_is_a_new_one(self, jobs: Jobs) -> None:
        jobs.path.touch()
        publish(jobs.open())

    def test_another_program_submits_with_the_library_alone(self, jobs: Jobs) -> None:
        client = jobs.open()
        jobs.execute("INSERT INTO inbox (queue, body) VALUES ('train', '{\"lr\": 1}')")
        with pytest.raises(sqlite3.IntegrityError, match="no such queue"):
            jobs.execute("INSERT INTO inbox (queue, body) VALUES ('trian', '{}')")
        assert take(client).message.body == b'{"lr": 1}'


class TestDamage:
    def test_flipped_bytes_are_noticed_or_harmless(self, jobs: Jobs) -> None:
        """Nothing is silently missing, and no job runs with another body."""
        rng = random.Random(20200)
        client = jobs.open()
        bodies = [b'{"number": %d, "text": "%s"}' % (n, b"x" * 200) for n in range(100)]
        publish(client, *bodies)
        client.close()
        sound = jobs.path.read_bytes()
        noticed = 0
        for _ in range(40):
            damaged = bytearray(sound)
            start = rng.randrange(100, len(sound) - 16)
            damaged[start : start + 16] = rng.randbytes(16)
            jobs.path.write_bytes(damaged)
            try:
                taken = self.drain(jobs)
            except TopologyError as error:
                noticed += str(jobs.path) in str(error)
            else:
                assert taken == bodies
            jobs.close()
        assert noticed > 5, "the rest hit what is empty"

    def drain(self, jobs: Jobs) -> list[bytes]:
        client = jobs.open()
        taken = []
        for _ in range(client.count(SPEC.name).ready):
            delivery = take(client, 0)
            if delivery.defect:
                raise TopologyError(f"{jobs.path}: {delivery.defect}")
            taken.append(delivery.message.body)
        return taken

    @pytest.mark.parametrize("kept", [20_000, 4096, 50])
    def test_a_file_that_was_cut_off(self, jobs: Jobs, kept: int) -> None:
        client = jobs.open()
        publish(client, *[b"x" * 500] * 100)
        client.close()
        os.truncate(jobs.path, kept)
        with pytest.raises(TopologyError, match=r"damaged|not an SQLite database"):
            jobs.open()

    def test_a_place_without_its_job_is_not_taken_for_an_empty_queue(self, jobs: Jobs) -> None:
        client = jobs.open()
        publish(client)
        jobs.execute("DELETE FROM jobs")
        with pytest.raises(TopologyError, match="damaged"):
            client.receive([SPEC.name], 0)


class TestUnderOurHands:
    @pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
    def test_a_file_that_is_taken_away(self, jobs: Jobs, replaced: bool) -> None:
        client, idle = jobs.open(), jobs.open()
        publish(client)
        if replaced:
            shutil.copy(jobs.path, jobs.path.with_name("copy"))
            os.replace(jobs.path.with_name("copy"), jobs.path)
            for suffix in ("-wal", "-shm"):
                jobs.path.with_name(f"jobs.db{suffix}").unlink(missing_ok=True)
        else:
            jobs.path.unlink()  # what belongs to it is left behind
        with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
            publish(client)
        assert not client.is_open
        client.open()
        client.declare(SPEC)
        (sent,) = publish(client)
        with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
            idle.receive([SPEC.name], 0)
        idle.open()
        assert take(idle).message.id == sent.id
        idle.close()
        client.close()
        assert jobs.execute("PRAGMA integrity_check") == [("ok",)]

    def test_a_file_deleted_under_a_waiting_client(self, jobs: Jobs) -> None:
        client = jobs.open()
        timer = threading.Timer(0.1, jobs.path.unlink)
        timer.start()
        with pytest.raises(BrokerUnavailable, match="deleted"):
            client.receive([SPEC.name], 5)
        timer.join()

    def test_a_file_deleted_while_it_is_opened(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_late(*_: object) -> None:
            raise FileNotFoundError(2, "No such file or directory", str(jobs.path))

        client = jobs.client()
        with monkeypatch.context() as patch:
            patch.setattr("synmanager.backends.sqlite.backend.Bells", too_late)
            with pytest.raises(BrokerUnavailable, match="No such file"):
                client.open()
        assert not client.is_open
        client.open()
        client.declare(SPEC)
        publish(client)
        client.close()

    def test_a_table_that_somebody_dropped(self, jobs: Jobs) -> None:
        client = jobs.open()
        jobs.execute("DROP TABLE ready")
        with pytest.raises(TopologyError, match=r"damaged.*ready"):
            publish(client)


CALLS: dict[str, Callable[[SQLiteBackend], Any]] = {
    "publish": publish,
    "receive": lambda client: client.receive([SPEC.name], 0),
    "purge": lambda client: client.purge(SPEC.name),
}


class TestLocked:
    @pytest.fixture
    def locked(self, jobs: Jobs) -> Iterator[sqlite3.Connection]:
        jobs.open()
        db = sqlite3.connect(jobs.path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.close()

    @pytest.mark.parametrize("call", CALLS)
    def test_a_call_fails_in_time(self, jobs: Jobs, locked: sqlite3.Connection, call: str) -> None:
        client = jobs.open(timeout=0.3)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="is locked"):
            CALLS[call](client)
        assert 0.3 <= time.monotonic() - began < 4  # SQLite itself waits for 5
        assert client.count(SPEC.name).ready == 0, "who only reads does not wait"
        locked.execute("ROLLBACK")
        CALLS[call](client)

    def test_each_of_many_threads_fails_in_time(
        self, jobs: Jobs, locked: sqlite3.Connection
    ) -> None:
        client = jobs.open(timeout=0.5)
        seconds: list[float] = []

        def call() -> None:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                publish(client)
            seconds.append(time.monotonic() - began)

        threads = [threading.Thread(target=call) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(seconds) == 16
        assert max(seconds) < 6  # one after the other, it would be 8

    def test_close_ends_those_who_wait_for_the_lock(
        self, jobs: Jobs, locked: sqlite3.Connection
    ) -> None:
        client = jobs.open(timeout=20)
        ended = threading.Event()

        def call() -> None:
            with pytest.raises(BrokerUnavailable):
                publish(client)
            ended.set()

        threading.Thread(target=call, daemon=True).start()
        time.sleep(0.05)
        began = time.monotonic()
        client.close()
        assert ended.wait(5)
        assert time.monotonic() - began < 5

    def test_a_lock_that_is_given_up_in_time_is_no_error(
        self, jobs: Jobs, locked: sqlite3.Connection
    ) -> None:
        client = jobs.open(timeout=10)
        timer = threading.Timer(0.1, lambda: None)
        timer.start()
        timer.join()
        locked.execute("ROLLBACK")
        publish(client)


class TestFull:
    def fill(self, client: QueueBackend) -> None:
        """Let the file grow no further."""
        assert isinstance(client, SQLiteBackend)
        assert client._connections is not None
        (connection,) = client._connections._idle
        pages = connection.db.execute("PRAGMA page_count").fetchone()[0]
        connection.db.execute(f"PRAGMA max_page_count = {pages}")

    def test_what_is_refused_and_what_is_there(self, jobs: Jobs) -> None:
        client = jobs.open()
        before = publish(client, b"1", b"2")
        self.fill(client)
        with pytest.raises(PublishRefused, match="disk is full") as refused:
            publish(client, *[b"x" * 100_000] * 3)
        assert len(refused.value.unconfirmed) == 3
        client.open()
        assert [take(client).message.id for _ in before] == [message.id for message in before]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
    def test_a_limit_of_the_user_s_is_as_good_as_a_full_disk(self, jobs: Jobs) -> None:
        """As a quota is, of which SQLite says no more than that there was an error."""

        def work() -> str:
            client = jobs.open(timeout=5)
            limit = jobs.path.stat().st_size + 400_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sent = 0
            try:
                while sent < 100:
                    publish(client, b"x" * 50_000)
                    sent += 1
            except PublishRefused as error:
                client.open()
                client.ack(take(client))
                assert client.count(SPEC.name).ready == sent - 1
                return str(error)
            return f"{sent} sent"

        assert "ulimit" in in_child(work)

    def test_a_batch_says_what_was_not_accepted(self, jobs: Jobs) -> None:
        client = jobs.open()
        self.fill(client)
        assert client._connections is not None
        (connection,) = client._connections._idle
        pages = connection.db.execute("PRAGMA page_count").fetchone()[0]
        connection.db.execute(f"PRAGMA max_page_count = {pages + 2400}")
        with pytest.raises(PublishRefused) as refused:
            publish(client, *[b"x" * 3_000_000] * 4)
        client.open()
        assert client.count(SPEC.name).ready + len(refused.value.unconfirmed) == 4
        assert client.count(SPEC.name).ready == 2


def in_child(work: Callable[[], str]) -> str:
    """What a fork returns that does this, or the type and text of what it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


class TestPermissions:
    def refused(self, jobs: Jobs) -> str:
        """What a user without rights is told who opens it and submits."""

        def work() -> str:
            if os.geteuid() == 0:
                os.setuid(65534)
            client = SQLiteBackend(Address("sqlite", path=str(jobs.path)))
            client.open()
            publish(client)
            return "done"

        return in_child(work)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
    @pytest.mark.parametrize("what", ["file", "directory", "new file"])
    def test_who_may_not_write_is_told_what(self, jobs: Jobs, what: str) -> None:
        if what != "new file":
            jobs.open()
            jobs.close()
        jobs.path.parent.chmod(0o777 if what == "file" else 0o555)
        if what == "file":
            jobs.path.chmod(0o444)
        answer = self.refused(jobs)
        jobs.path.parent.chmod(0o700)
        assert answer.startswith(f"{AccessRefused.__name__}: ")
        assert str(jobs.path) in answer
        if what == "file":  # it has left nothing that would keep its owner out
            assert set(os.listdir(jobs.path.parent)) == {"jobs.db", "jobs.db-bells"}

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
    @pytest.mark.parametrize("suffix", ["-wal", "-shm"])
    def test_who_may_not_write_what_belongs_to_the_file_is_told(
        self, jobs: Jobs, suffix: str
    ) -> None:
        """As another user's program leaves it who may only read."""
        jobs.open()
        jobs.close()
        files = {each: jobs.path.with_name(f"jobs.db{each}") for each in ("", "-wal", "-shm")}
        with jobs.killed_in("replay('events', wait=60)"):
            until(lambda: all(each.exists() for each in files.values()))
        jobs.path.parent.chmod(0o777)
        for each in files.values():
            each.chmod(0o666)
        files[suffix].chmod(0o444)
        answer = self.refused(jobs)
        jobs.path.parent.chmod(0o700)
        assert answer.startswith(f"{AccessRefused.__name__}: ")
        assert f"jobs.db{suffix}" in answer

    @pytest.mark.parametrize("suffix", ["-wal", "-shm"])
    def test_what_somebody_else_just_deletes_refuses_nobody(
        self, jobs: Jobs, suffix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        beside = f"{jobs.path}{suffix}"
        Path(beside).touch()
        access = os.access

        def delete(path: Any, mode: int) -> bool:
            if os.fspath(path) == beside and os.path.exists(beside):
                os.unlink(beside)
            return access(path, mode)

        monkeypatch.setattr(os, "access", delete)
        assert not why_not_written(jobs.path)
        assert not os.path.exists(beside)

    @pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
    def test_a_new_file_goes_by_the_umask(self, jobs: Jobs, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            publish(jobs.open())
        finally:
            os.umask(before)
        for suffix in ("", "-wal", "-shm", "-bells/.lock"):
            assert S_IMODE(os.stat(f"{jobs.path}{suffix}").st_mode) == mode

    def test_what_lies_beside_is_theirs_whose_file_it_is(self, jobs: Jobs) -> None:
        jobs.open()  # and goes on, or there would be no log
        directory = jobs.path.with_name("jobs.db-bells")
        directory.chmod(0o2700)  # new files are of its group
        jobs.path.chmod(0o660)
        if os.geteuid() == 0:  # only root can give something to another user
            os.chown(jobs.path, 1234, 5678)
        jobs.open()
        files = [Path(f"{jobs.path}{suffix}") for suffix in ("", "-wal", "-shm", "-bells/.lock")]
        assert {S_IMODE(each.stat().st_mode) for each in files} == {0o660}
        assert S_IMODE(directory.stat().st_mode) == 0o2770
        found = [each.stat() for each in (*files, directory)]
        assert len({(status.st_uid, status.st_gid) for status in found}) == 1

    def test_a_link_beside_the_file_gives_nothing_away(self, jobs: Jobs) -> None:
        """Whoever may write to the directory could have root open up what is root's."""
        jobs.open()
        secret = jobs.path.with_name("secret")
        secret.touch(0o600)
        lock = jobs.path.with_name("jobs.db-bells") / ".lock"
        lock.unlink()
        lock.symlink_to(secret)
        jobs.path.chmod(0o666)
        jobs.open()
        assert S_IMODE(secret.stat().st_mode) == 0o600

    @pytest.mark.parametrize("what", ["file", "new file"])
    def test_a_file_system_that_is_mounted_read_only_is_told(
        self, jobs: Jobs, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the kernel mounts one anew whose disk has failed."""
        if what == "file":
            jobs.open()
            jobs.close()

        def refuse(*_: Any, **how: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        class Status:
            f_flag = os.ST_RDONLY

        monkeypatch.setattr(os, "statvfs", lambda place: Status)
        if what == "new file":
            monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(AccessRefused, match="file system is mounted read-only"):
            jobs.open()


def test_a_commit_in_doubt_is_told_as_such(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    client = jobs.open()
    publish(client)
    held = take(client)
    calls = iter([False, True])

    def identity(path: object) -> tuple[int, int] | None:
        return (0, 0) if next(calls, False) else real(path)

    real: Any = file.identity
    monkeypatch.setattr(file, "identity", identity)
    with pytest.raises(PublishInterrupted) as interrupted:
        publish(client, b"1", b"2")
    assert len(interrupted.value.unconfirmed) == 2
    monkeypatch.undo()
    client.open()
    calls = iter([False, True])
    monkeypatch.setattr(file, "identity", identity)
    with pytest.raises(BrokerUnavailable):
        client.ack(held)
    monkeypatch.undo()
    client.open()
    client.ack(held)  # which it was
    assert held.settled
    assert client.count(SPEC.name).leased == 0
