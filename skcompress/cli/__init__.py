"""The command `skcompress`: results on stdout, progress and errors on stderr."""
