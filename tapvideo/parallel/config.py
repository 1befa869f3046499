"""How a run is spread over ranks."""

from dataclasses import dataclass

from tapvideo.checks import ConfigError, at_least, check_types, one_of
from tapvideo.parallel.attention import ATTENTIONS
from tapvideo.parallel.layout import LAYOUTS

GROUPS = ("mesh", "xfuser")
VAES = ("auto", "rank0", "distvae", "all")


@dataclass(kw_only=True)
class ParallelConfig:
    """Sizes of the mesh axes, and how ranks work together; a single process needs none of it."""

    dp: int = 1
    """Groups of ranks that make different clips."""
    cfg: int = 1
    """2 runs the two guidance branches on two halves of a group."""
    sp: int | None = None
    """Ranks that share the tokens of one branch; null is all that dp and cfg leave."""
    layout: str = "diagonal"
    """Which rank holds which tokens: `diagonal` and `strided` balance what is recomputed, `contiguous` does not."""
    attention: str = "auto"
    """Of full steps: `ulysses` (ranks must divide the heads), `allgather_kv`, `usp` (xfuser's, even shards, with
    `groups=xfuser`); `auto` takes ulysses where it can."""
    ring: int = 1
    """Of `sp` ranks in `usp`, how many pass keys and values round a ring; the others trade heads."""
    groups: str = "mesh"
    """Who makes the process groups: torch's DeviceMesh (`mesh`) or `xfuser` (extra, NVIDIA GPUs)."""
    vae: str = "auto"
    """Who decodes: `rank0` of a clip's group, `all` alike, `distvae` together (extra); `auto` is distvae if it can."""
    timeout: float = 1800.0
    """Seconds after which a rank that does not answer is taken for lost; more than decoding on one rank takes. A rank
    that has died is noticed at once."""

    def __post_init__(self) -> None:
        """Check every value."""
        check_types("parallel", self)
        at_least("parallel.dp", self.dp, 1)
        if self.cfg not in (1, 2):
            raise ConfigError(
                f"parallel.cfg={self.cfg!r} is not possible: there are two guidance branches; allowed: 1, 2"
            )
        if self.sp is not None:
            at_least("parallel.sp", self.sp, 1)
        at_least("parallel.timeout", self.timeout, 1)
        one_of("parallel.layout", self.layout, LAYOUTS)
        at_least("parallel.ring", self.ring, 1)
        one_of("parallel.attention", self.attention, ("auto", *ATTENTIONS, "usp"))
        one_of("parallel.groups", self.groups, GROUPS)
        if self.attention == "usp" and self.groups != "xfuser":
            raise ConfigError(f"parallel.attention='usp' is xfuser's; parallel.groups={self.groups!r}, allowed: xfuser")
        if self.ring > 1 and self.attention != "usp":
            raise ConfigError(
                f"parallel.ring={self.ring} is of usp alone; parallel.attention={self.attention!r} allows: 1"
            )
        one_of("parallel.vae", self.vae, VAES)
