"""``python -m rightbatch``: the command line."""

from rightbatch.cli import main

if __name__ == "__main__":
    main()
