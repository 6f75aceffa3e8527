"""`python -m flowmrd`."""

from flowmrd.cli import main

if __name__ == "__main__":
    main()
