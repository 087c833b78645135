"""What to say where an optional package is missing."""


class MissingExtraError(ValueError):
    """Something asked for needs a package that is not installed.

    Args:
        purpose: What was asked for.
        package: The package it needs.
        extra: The extra of this distribution that brings it.
    """

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(
            f"{purpose}: {package} is needed, which is not installed: "
            f"pip install 'fullspectrum-ext[{extra}]'"
        )
