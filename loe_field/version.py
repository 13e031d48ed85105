"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("loe-field")
except PackageNotFoundError:  # used straight from a source folder, not installed
    __version__ = "0+unknown"
