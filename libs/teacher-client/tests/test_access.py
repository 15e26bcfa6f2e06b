import pytest

from latentforge.core.settings import SettingsError, load_settings
from latentforge.teacher_client.access import GatewayAccess


@pytest.mark.parametrize("key", ["two words", "żółć", "line\nbreak"])
def test_a_key_that_metadata_cannot_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_API_KEY: use printable ASCII") as caught:
        load_settings(GatewayAccess, gateway_api_key=key)
    assert key not in str(caught.value)


def test_a_key_may_hold_every_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "".join(map(chr, range(0x21, 0x7F)))
    monkeypatch.setenv("GATEWAY_API_KEY", key)
    read = load_settings(GatewayAccess).gateway_api_key
    assert read is not None
    assert read.get_secret_value() == key
    assert key not in repr(read)
