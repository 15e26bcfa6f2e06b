import pytest

from latentforge.core.command_line import DONE, FAILED, WRONG_USAGE, errors_reported, fail
from latentforge.core.settings import SettingsError


class WrongRecipeError(ValueError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("PORT is 'x': not a number"), WRONG_USAGE),
        (WrongRecipeError("PORT is 'x': not a number"), WRONG_USAGE),
        (OSError("PORT is 'x': not a number"), FAILED),
        # A SettingsError is a ValueError, and still no failure.
        (ValueError("PORT is 'x': not a number"), FAILED),
    ],
)
def test_what_a_user_can_put_right_is_one_message_and_an_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, errors_reported(ValueError, OSError, usage=(WrongRecipeError,)):
        raise error
    assert caught.value.code == code
    assert capsys.readouterr().err == "error: PORT is 'x': not a number\n"


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), errors_reported(OSError):
        raise KeyError("ours")
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with errors_reported(OSError):
        pass
    assert capsys.readouterr().err == ""


def test_a_command_fails_with_a_code_of_its_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=str(WRONG_USAGE)):
        fail("give --steps or --epochs", code=WRONG_USAGE)
    assert capsys.readouterr().err == "error: give --steps or --epochs\n"


def test_the_codes_are_what_shells_and_argument_parsers_use() -> None:
    assert (DONE, FAILED, WRONG_USAGE) == (0, 1, 2)
