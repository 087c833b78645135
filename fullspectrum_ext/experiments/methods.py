"""Method names as the driver takes them."""


def check_method(method: str) -> None:
    """Raise ValueError unless ``method`` is one that the driver can run."""
    if method != "dense":
        raise ValueError(f"methods: expected dense, got {method!r}")
