"""Run the command line: `python -m gateway COMMAND` is the same as `myna COMMAND`."""

import sys

from gateway.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
