"""How scripts end: one clear line for what the user can mend, a traceback for what only we can."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from kdstream.config import UserError


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a UserError becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        logging.shutdown()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
