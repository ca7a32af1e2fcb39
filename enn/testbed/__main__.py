"""See `enn.testbed.command`."""

from enn.testbed.command import main

if __name__ == "__main__":
    main()
