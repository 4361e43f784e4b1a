"""``python -m synmanager``."""

import sys

from synmanager.cli import main

sys.exit(main())
