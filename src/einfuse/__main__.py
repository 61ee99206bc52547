"""`python -m einfuse` is `einfuse`."""

import sys

from einfuse.cli import main

sys.exit(main())
