"""``python -m bensemble``: the command line, where no ``bensemble`` lies on the PATH."""

from convert.cli import main

if __name__ == "__main__":
    main()
