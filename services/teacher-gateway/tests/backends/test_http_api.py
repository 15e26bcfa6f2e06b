import pytest

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.http_api import parsed_url


@pytest.mark.parametrize("url", ["http://u:a/SECRETPW@host", "http://u:a#SECRETPW@host", "http://SECRETPW:a?b@host"])
def test_a_url_whose_password_ends_its_host_is_refused_without_any_of_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"THING_URL malformed http://\(hidden\); allowed is") as caught:
        parsed_url(url, "THING_URL")
    assert "SECRETPW" not in str(caught.value)
