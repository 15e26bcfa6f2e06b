import re
from typing import Any


def test_the_page_is_served_and_asks_nobody_else(api: Any) -> None:
    page = api.client.get("/docs")
    assert page.status_code == 200
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) == 3
    for address in addresses:
        assert address.startswith("/docs/assets/")
        assert api.client.get(address).status_code == 200
    assert "://" not in page.text.replace("http://www.w3.org", "")
    # By default a validator elsewhere is asked.
    assert '"validatorUrl": null' in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_the_description_names_statuses_errors_and_streams(api: Any) -> None:
    described = api.client.get("/openapi.json").json()
    operation = described["paths"]["/v1/completions"]["post"]
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= operation["responses"].keys()
    assert "422" not in operation["responses"]
    for status, answer in operation["responses"].items():
        if status != "200":
            assert answer["content"]["application/json"]["schema"] == error
    whole, stream = operation["responses"]["200"]["content"].items()
    assert (whole[0], stream[0]) == ("application/json", "text/event-stream")
    assert described["paths"]["/generate"]["post"]["responses"]["422"]["content"]["application/json"]["schema"] == error
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', str(described).replace("'", '"')))
    assert references <= described["components"]["schemas"].keys()
    assert "HTTPValidationError" not in str(described)
