"""The look-out for secrets sees them wherever they could come out; it is on during every test."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import httpx
import pytest

from receiver import settings as configuration
from tests import asgi
from tests.live.installation import Installation
from tests.receiver.serving import configured
from tests.secrecy import RECORDER, Recorder, unknown
from tests.servers import eventually

SECRET = "qs-new:pässword"


@pytest.mark.parametrize(
    "text",
    [
        f"password {SECRET} refused",
        f"password {SECRET} refused".encode("latin-1"),
        rb'{"detail": "qs-new:p\u00e4ssword"}',
        "redis://user:qs-new%3Ap%C3%A4ssword@h",
        "Basic " + b64encode(f"acme:{SECRET}".encode()).decode(),
    ],
)
def test_every_spelling_is_found(text: str | bytes) -> None:
    recorder = Recorder()
    recorder.look("here", text)
    assert f"{SECRET!r} in here" in recorder.taken()
    assert recorder.taken() == []


def test_the_secrets_of_the_installations_are_known(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.client.close()
    assert unknown(configuration.load(installation.config)) == []
    assert unknown(configured(tmp_path, "redis://127.0.0.1")) == []


def test_command_lines_are_found() -> None:
    recorder = Recorder()
    with subprocess.Popen([sys.executable, "-c", "input()", "cko-new-key"], stdin=subprocess.PIPE) as process:

        def found() -> bool:
            recorder.look_at_processes()
            return any("command line" in each for each in recorder.taken())

        eventually(found)
        process.communicate(b"\n")


@pytest.mark.parametrize("name", ["worker.log", "deep/er/export.csv", "ledger.sqlite3", "ledger.sqlite3-wal"])
def test_files_that_a_test_leaves_are_found(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, recorder = tmp_path_factory.mktemp("left"), Recorder()
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0" + SECRET.encode())
    (folder / "postback.toml").write_text(SECRET)
    recorder.look_at_files(folder)
    found = recorder.taken()
    assert f"{SECRET!r} in the file {name}" in found
    assert not any("postback.toml" in each for each in found)


def test_what_commands_print_and_servers_answer_is_looked_at() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.stdin.read())"], input=SECRET.encode(), capture_output=True
    )
    assert any("printed" in found for found in RECORDER.taken())
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=SECRET))
    with httpx.Client(transport=transport) as client:
        client.get("http://127.0.0.1/page")
    assert any("/page" in found for found in RECORDER.taken())

    async def get() -> None:
        async with httpx.AsyncClient(transport=transport) as client:
            await client.get("http://127.0.0.1/awaited")

    asyncio.run(get())
    assert any("/awaited" in found for found in RECORDER.taken())

    async def leaks(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": SECRET.encode()})  # type: ignore[operator]

    asyncio.run(asgi._ask(leaks, {"path": "/leak"}, b""))
    assert any("/leak" in found for found in RECORDER.taken())


def test_a_test_that_lets_one_out_fails(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    pytester.makeconftest("from tests.secrecy import pytest_runtest_makereport")
    pytester.makepyfile(f"def test_it(): print({SECRET!r})")
    pytester.makepyfile(test_file=f"def test_it(tmp_path): (tmp_path / 'x.log').write_text({SECRET!r})")
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-n0")
    # What a file has is seen after the test.
    done.assert_outcomes(failed=1, passed=1, errors=1)
    done.stdout.fnmatch_lines(["*A secret came out: *"])
    # Which would be this test's own.
    capsys.readouterr()
