"""`python -m keras_structadv audit`."""

import sys

from keras_structadv.audit.command import main

if __name__ == "__main__":
    sys.exit(main())
