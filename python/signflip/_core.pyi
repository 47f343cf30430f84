"""The extension: what the Rust core looks like from Python. Checked against the built module by `make lint`."""

__version__: str
