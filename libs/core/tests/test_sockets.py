import asyncio
import errno
import socket

import pytest

from latentforge.core.sockets import bracketed, browser_address, host_port, http_address, listening_socket


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
LOOPBACK6 = [pytest.param(host, marks=needs_ipv6) for host in ("::1", "[::1]")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", *LOOPBACK6])
async def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(host: str) -> None:
    no_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        no_delay.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()
        await writer.wait_closed()

    listening = listening_socket(host, 0)
    async with await asyncio.start_server(look, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        assert await no_delay
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_is_written_as_a_url(host: str) -> None:
    with listening_socket(host, 0) as server:
        assert http_address(server) == f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("host", LOOPBACK6)
def test_an_ipv6_address_is_written_in_brackets(host: str) -> None:
    with listening_socket(host, 0) as server:
        assert http_address(server) == f"http://[::1]:{server.getsockname()[1]}"


@needs_ipv6
def test_every_ipv6_address_takes_ipv4_clients_too() -> None:
    with (
        listening_socket("::", 0) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1]), timeout=5),
    ):
        pass


def test_a_port_that_is_taken_is_refused_even_before_its_owner_serves() -> None:
    with listening_socket("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use") as caught:
        listening_socket("127.0.0.1", taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "my..host", "a" * 64])
def test_a_host_that_is_not_this_machine_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011  the words are the system's
        listening_socket(host, 0)


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "127.0.0.1:80"), ("a.b", "a.b:80"), ("::1", "[::1]:80"), ("[::1]", "[::1]:80")]
)
def test_an_ipv6_address_has_brackets_before_its_port(host: str, expected: str) -> None:
    assert host_port(host, 80) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("::1:50051", "[::1]:50051"),
        ("fe80::1%eth0:50051", "[fe80::1%eth0]:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("dns:///localhost:50051", "dns:///localhost:50051"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
        ("localhost", "localhost"),
    ],
)
def test_an_ipv6_address_in_a_target_gets_the_brackets_that_it_lacks(target: str, expected: str) -> None:
    assert bracketed(target) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_browser_is_sent_to_this_machine_where_every_address_listens(host: str) -> None:
    with listening_socket(host, 0) as server:
        assert browser_address(server) == f"http://localhost:{server.getsockname()[1]}"


def test_a_browser_is_sent_to_the_address_that_listens() -> None:
    with listening_socket("127.0.0.1", 0) as server:
        assert browser_address(server) == http_address(server)
