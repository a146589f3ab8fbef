"""`python -m thalweg.cli`."""

from thalweg.cli.app import main

if __name__ == "__main__":
    main()
