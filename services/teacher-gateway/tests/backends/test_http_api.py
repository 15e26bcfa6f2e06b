import pytest

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.http_api import open_client, parsed_url


@pytest.mark.parametrize("url", ["http://u:a/SECRETPW@host", "http://u:a#SECRETPW@host", "http://SECRETPW:a?b@host"])
def test_a_url_whose_password_ends_its_host_is_refused_without_any_of_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"THING_URL malformed http://\(hidden\); allowed is") as caught:
        parsed_url(url, "THING_URL")
    assert "SECRETPW" not in str(caught.value)


# httpx makes one of each proxy that the environment has, whatever it is for.
UNUSABLE = [
    ("all_proxy", "socks5://127.0.0.1:9"),
    ("https_proxy", "foo://127.0.0.1:9"),
    ("all_proxy", "http://a:b/c@d"),
]


@pytest.fixture(params=UNUSABLE, ids=["socks", "scheme", "malformed"])
def unusable_proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for kind in ("http", "https", "all", "no"):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)
    variable, url = request.param
    monkeypatch.setenv(variable, url)
    return str(variable)


@pytest.mark.usefixtures("unusable_proxy")
async def test_an_api_of_this_machine_is_asked_whatever_the_proxies_are() -> None:
    for url in ("http://127.0.0.1:8000", "https://[::1]:8000"):
        base, client = open_client(url, "THING_URL", None, "THING_KEY")
        await client.aclose()
        assert base == url


def test_an_ipv6_address_in_a_url_has_brackets() -> None:
    with pytest.raises(SettingsError, match=r"^THING_URL malformed 'http://::1:8000' .*an IPv6 address in brackets$"):
        open_client("http://::1:8000", "THING_URL", None, "THING_KEY")


def test_a_proxy_that_cannot_be_used_is_said(unusable_proxy: str) -> None:
    with pytest.raises(SettingsError, match=rf"^a proxy of the environment \({unusable_proxy}\) cannot be used: .*\w"):
        open_client("http://vllm.example:8000", "THING_URL", None, "THING_KEY")
