"""Installs enn as its users are used to; pyproject.toml holds the metadata."""

import setuptools

setuptools.setup()
