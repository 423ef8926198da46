"""`python -m sparsekit COMMAND ...`, the same as `sparsekit COMMAND ...`."""

import sys

from sparsekit.cli import main

sys.exit(main())
