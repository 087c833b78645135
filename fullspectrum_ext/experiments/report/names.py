"""What a method's name in the records says of its kin: base, variant, what to compare it with."""

from dataclasses import dataclass

from fullspectrum_ext.experiments.evolving import START, dynamic_methods
from fullspectrum_ext.pruning import ABLATIONS

DENSE, IMP = "dense", "imp"
_PAGS, _DRIFT, _WARM = "pags", "drift", "warm"
_GUIDED = ":ramanujan"


@dataclass(frozen=True)
class Kin:
    """A name taken apart: ``[pags:]BASE[:drift][:warm][:ablation][+DYNAMIC]``.

    Unlike the driver, which refuses what it cannot run, this takes any name: records may come from
    elsewhere.

    Attributes:
        base: The method, without what it is a variant by.
        is_pags: Whether masks around the base are sampled.
        flags: drift, warm and ablation, those that are there.
        dynamic: What changes the topology from there on, if that is said with a plus sign.
    """

    base: str
    is_pags: bool
    flags: tuple[str, ...]
    dynamic: str = ""

    @property
    def family(self) -> str:
        """What shares a colour: ``imp`` of ``imp:lr``."""
        return self.base.split(":")[0]

    @property
    def variant(self) -> str:
        """What shares a marker: all of the name but the family."""
        rest = self.base.split(":")[1:]
        start = ":".join([_PAGS] * self.is_pags + rest + list(self.flags))
        return f"{start}+{self.dynamic}" if self.dynamic else start


def kin(method: str) -> Kin:
    """Take a name apart.

    Args:
        method: Of a run.

    Returns:
        Its parts.

    Example:
        >>> kin("pags:snip:drift")
        Kin(base='snip', is_pags=True, flags=('drift',), dynamic='')
    """
    start, _, dynamic = method.partition("+")
    parts = start.split(":")
    flags: list[str] = []
    while len(parts) > 1 and parts[-1] in {_DRIFT, _WARM, *ABLATIONS}:
        flags.insert(0, parts.pop())
    is_pags = parts[0] == _PAGS
    base = ":".join(parts[1:] if is_pags else parts)
    return Kin(base or "snip", is_pags, tuple(flags), dynamic)


def has_larger_norm(method: str) -> bool:
    """Whether it is PAGS that keeps layer counts, and whose norm cannot be below its base's."""
    # Drift changes the counts, a warm start the weights that the norm is of, an ablation and
    # updates of the topology the masks.
    own = kin(method)
    return own.is_pags and not own.flags and not own.dynamic


def is_dynamic(method: str) -> bool:
    """Whether it changes the topology in the course of training."""
    return method in dynamic_methods() or bool(kin(method).dynamic)


def is_guided(method: str) -> bool:
    """Whether it changes the topology by the coordinate."""
    return is_dynamic(method) and method.endswith(_GUIDED)


def rivals(method: str, others: list[str]) -> list[str]:
    """Name what a method is to be compared with, of what there is.

    Args:
        method: A name.
        others: All names in the same experiment.

    Returns:
        For ``pags:BASE...`` the base with the same warm start and ablation, without a warm start
        where that is missing; for what starts warm, ``imp`` as well. For what changes the
        topology the fixed masks that it begins with, and the same without guidance.

    Example:
        >>> rivals("pags:snip:warm", ["pags:snip:warm", "snip:warm", "snip", "imp"])
        ['snip:warm', 'imp']
        >>> rivals("snip+rigl", ["snip+rigl", "snip"])
        ['snip']
        >>> rivals("set:ramanujan", ["set:ramanujan", "set", "erk"])
        ['set', 'erk']
    """
    own, found = kin(method), []
    if is_dynamic(method):
        start = method.partition("+")[0] if own.dynamic else START
        wanted = [method.removesuffix(_GUIDED), start]
        return [name for name in wanted if name != method and name in others]
    if own.is_pags:
        flags = [flag for flag in own.flags if flag != _DRIFT]
        same = ":".join([own.base, *flags])
        cold = ":".join([own.base, *(flag for flag in flags if flag != _WARM)])
        found = [name for name in (same, cold) if name in others][:1]
    if _WARM in own.flags and IMP in others:
        found.append(IMP)
    return found
