"""The demonstration `python -m enn.demo`: networks that know what they don't know."""
