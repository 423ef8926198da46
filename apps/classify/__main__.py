"""`python -m apps.classify VERB ...`, the same as `sparsekit classify VERB ...`."""

import sys

from apps.classify.cli import main
from sparsekit.cli import ended

sys.exit(ended(main))
