"""`python -m wx_data`."""

import sys

from wx_data._cli import main

if __name__ == "__main__":
    sys.exit(main())
