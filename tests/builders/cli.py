"""The command line, called as a shell would."""

import pytest

from featurestore.cli import main


def run(capsys, *args):
    """Call the command line as a shell would: (status, stdout, stderr)."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err
