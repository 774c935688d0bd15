"""`python -m playground`: the same as `kerasllm playground`."""

import sys

from kerasllm.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "playground")
    main()
