"""SET: sparse evolutionary training."""

from dataclasses import dataclass

from fullspectrum_ext.dynamic.method import Method, register_method


@register_method("set")
@dataclass(kw_only=True)
class SET(Method):
    """Drops a layer's smallest weights and grows as many at random places.

    The original drops the smallest positive and the largest negative weights, each of a fixed
    share; as in later work it is the smallest magnitudes here. A place that was just emptied may be
    drawn: its weight then stays as it is.

    Args:
        every: Steps from one update to the next; the original says an epoch.
        fraction: Of a layer's weights, dropped.
        anneal: ``"constant"``, as in the original.
        floor: As of :class:`Method`.
        until: Share of the training in which the topology changes.

    References:
        Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science, Nature Communications 2018.

    Example:
        >>> SET(every=20).fraction_at(10, steps=100)
        0.3
    """

    anneal: str = "constant"
    until: float = 1.0
