import pytest

from nnunet_plugins.cli import COMMANDS, main


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert set(COMMANDS) <= set(shown.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"mambamed {command}" in capsys.readouterr().out


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["trian"])
    assert "doctor" in capsys.readouterr().err
