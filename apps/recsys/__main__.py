"""`python -m apps.recsys VERB ...`, the same as `sparsekit recsys VERB ...`."""

import sys

from apps.recsys.cli import main

sys.exit(main())
