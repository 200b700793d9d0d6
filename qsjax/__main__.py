"""`python -m qsjax` is `qsjax`."""

import sys

from qsjax.cli import main

sys.exit(main())
