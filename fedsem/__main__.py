"""`python -m fedsem` is the command line."""

from fedsem.cli import main

if __name__ == "__main__":
    main()
