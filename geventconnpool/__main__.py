"""``python -m geventconnpool``: what a service looks like from here. ``--help`` tells more."""

import sys

from geventconnpool._commands import main

sys.exit(main())
