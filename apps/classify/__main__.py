"""`python -m apps.classify VERB ...`, the same as `sparsekit classify VERB ...`."""

import sys

from apps.classify.cli import main

sys.exit(main())
