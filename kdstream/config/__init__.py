"""Settings: dataclasses, flags, config.json."""
