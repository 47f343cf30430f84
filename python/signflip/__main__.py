"""``python -m signflip``: the command line where no script is on the path."""

import sys

from signflip.cli import main

sys.exit(main())
