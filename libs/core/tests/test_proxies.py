import pytest

from latentforge.core.proxies import is_loopback, proxy_hint, unusable_proxy


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("http", "https", "all", "grpc", "no"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind}_proxy".upper(), raising=False)


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:7860",
        "http://LOCALHOST",
        "https://127.0.0.1:7860/generate",
        "http://127.1.2.3",
        "http://[::1]:7860",
        "http://0.0.0.0:7860",
        "http://user:secret@localhost:7860",
        "http://me.localhost",
        "localhost:50051",
        "127.0.0.1:50051",
        "[::1]:50051",
        "::1:50051",
        "dns:///localhost:50051",
    ],
)
def test_loopback_is_known_in_every_spelling(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["http://example.org", "teacher-gateway:50051", "192.0.2.1:1", "http://localhost.example.org", "http://[::1", ""],
)
def test_other_addresses_are_not(address: str) -> None:
    assert not is_loopback(address)


def test_a_proxy_that_cannot_be_used_is_said_without_what_may_be_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret/@127.0.0.1:9")
    assert unusable_proxy(ImportError("no socks")) == (
        "a proxy of the environment (https_proxy, all_proxy) cannot be used: no socks; correct or unset it"
    )
    assert "secret" not in unusable_proxy(Exception("Invalid port: 'secret'"))


@pytest.mark.parametrize(
    ("variable", "address", "named"),
    [
        ("http_proxy", "http://example.org:7860", "http_proxy"),
        ("HTTP_PROXY", "http://example.org:7860", "http_proxy"),
        ("all_proxy", "https://example.org", "all_proxy"),
        ("http_proxy", "example.org:50051", "http_proxy"),
        ("grpc_proxy", "dns:///example.org:50051", "grpc_proxy"),
    ],
)
def test_an_error_behind_a_proxy_says_how_to_go_past_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str, named: str
) -> None:
    monkeypatch.setenv(variable, "http://user:secret@127.0.0.1:9")
    assert proxy_hint(address) == f"; {named} sends this through a proxy, no_proxy=example.org would not"


def test_without_a_proxy_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_hint("http://example.org") == ""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert proxy_hint("http://localhost:7860") == ""
    assert proxy_hint("https://example.org") == ""
    monkeypatch.setenv("no_proxy", "example.org")
    assert proxy_hint("http://example.org") == ""
    assert proxy_hint("example.org:50051") == ""
    # gRPC looks at lower case alone.
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert proxy_hint("other.org:50051") == ""
