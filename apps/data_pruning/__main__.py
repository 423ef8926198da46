"""`python -m apps.data_pruning VERB ...`, as `sparsekit data-pruning VERB ...`."""

import sys

from apps.data_pruning.cli import main
from sparsekit.cli import ended

sys.exit(ended(main))
