"""`python -m apps.continual VERB ...`, the same as `sparsekit continual VERB ...`."""

import sys

from apps.continual.cli import main
from sparsekit.cli import ended

sys.exit(ended(main))
