"""`python -m blockc`: the same as the command `blockc`."""

import sys

from blockc.cli import main

sys.exit(main())
