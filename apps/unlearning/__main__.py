"""`python -m apps.unlearning VERB ...`, the same as `sparsekit unlearning VERB ...`."""

import sys

from apps.unlearning.cli import main
from sparsekit.cli import ended

sys.exit(ended(main))
