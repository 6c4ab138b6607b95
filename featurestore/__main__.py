"""``python -m featurestore``: the command line."""

from featurestore.cli import main

if __name__ == "__main__":
    main()
