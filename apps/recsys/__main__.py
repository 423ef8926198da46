"""`python -m apps.recsys VERB ...`, the same as `sparsekit recsys VERB ...`."""

import sys

from apps.recsys.cli import main
from sparsekit.cli import ended

sys.exit(ended(main))
