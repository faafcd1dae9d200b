"""`python -m skcompress` is the command `skcompress`."""

from .cli.main import main

if __name__ == "__main__":
    main()
