"""Audio files as people have them: found, read to their end, or refused by name.  Needs numpy and soundfile alone."""
