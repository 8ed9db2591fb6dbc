"""The command line, called in this process."""

from cinema_fast.cli import main


def called(capfd, *arguments) -> tuple[int, str, str]:
    """Exit status, output and errors of a command, in this process."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as end:  # how the option parser ends
        status = end.code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err
