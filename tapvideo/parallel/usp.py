"""Full-step attention by xfuser's USP: some ranks trade heads (Ulysses), the others pass keys and values (ring)."""

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

from jaxtyping import Float
from torch import Tensor

from tapvideo.checks import ConfigError
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.xfuser_groups import import_xfuser


class UspAttention:
    """Self-attention of full steps; its kernel is the one that xfuser takes for the GPU at hand.

    Bytes received per rank and layer, in tokens x width numbers, for P = U x R ranks of which U trade heads:
    4 (U - 1) / (U P) for the heads, 2 (R - 1) / P for the ring.
    """

    def __init__(self, comm: Comm, *, heads: int, ring: int = 1) -> None:
        """`comm` is the sp group that `xfuser_groups` made with this `ring`.

        Raises:
            ConfigError: if xfuser is not at hand, or trades heads that its ranks do not divide.
        """
        self.comm = comm
        self.ring = ring
        self.ulysses = comm.size // ring
        if heads % self.ulysses:
            rings = ", ".join(str(r) for r in _divisors(comm.size) if heads % (comm.size // r) == 0)
            raise ConfigError(
                f"parallel.attention='usp' trades heads among {self.ulysses} of {comm.size} ranks, which do not divide "
                f"{heads} heads; allowed: parallel.ring of {rings}"
            )
        self._usp = import_xfuser("model_executor.layers.usp").USP
        made = import_xfuser("core.distributed.parallel_state")
        degrees = made.get_ulysses_parallel_world_size(), made.get_ring_parallel_world_size()
        if degrees != (self.ulysses, ring):  # without yunchang xfuser takes both for 1, and attends to a shard alone
            raise ConfigError(
                f"parallel.attention='usp' has {degrees[0]} x {degrees[1]} ranks in xfuser, and parallel.ring={ring} "
                f"asks for {self.ulysses} x {ring}; is yunchang installed? allowed here: auto, ulysses, allgather_kv"
            )
        _start_runtime(made, heads)

    def __call__(
        self,
        query: Float[Tensor, "b n h d"],
        key: Float[Tensor, "b n h d"],
        value: Float[Tensor, "b n h d"],
        counts: Sequence[int],
    ) -> Float[Tensor, "b n h d"]:
        """Attention of this rank's tokens to all ranks', `counts` each.

        Raises:
            ValueError: if ranks have different numbers of tokens.
        """
        if len(set(counts)) > 1:
            tokens, ranks = sum(counts), len(counts)
            raise ValueError(
                f"parallel.attention=usp needs as many tokens on every rank, and {ranks} ranks do not divide {tokens} "
                "tokens; allowed: sizes that they divide, or ulysses, allgather_kv"
            )
        out = self._usp(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        self._count(query)
        return out.transpose(1, 2)

    def _count(self, rows: Tensor) -> None:
        size = rows.numel() * rows.element_size()
        if self.ulysses > 1:
            for _ in range(4):  # queries, keys, values, and the way back
                self.comm.ledger.count("attention", size * (self.ulysses - 1) // self.ulysses)
        if self.ring > 1:
            self.comm.ledger.count("attention", 2 * size * (self.ring - 1))


def _start_runtime(made: ModuleType, heads: int) -> None:
    """What USP asks for its kernel; xfuser's own start of it without a pipeline knows one rank only (0.7.0)."""
    state = import_xfuser("core.distributed.runtime_state")
    if state.runtime_state_is_initialized():
        return
    arguments = import_xfuser("config").xFuserArgs(
        data_parallel_degree=made.get_data_parallel_world_size(),
        use_cfg_parallel=made.get_classifier_free_guidance_world_size() > 1,
        ulysses_degree=made.get_ulysses_parallel_world_size(),
        ring_degree=made.get_ring_parallel_world_size(),
    )
    transformer = SimpleNamespace(config=SimpleNamespace(num_attention_heads=heads))  # all that is read of a pipeline
    try:
        config, _ = arguments.create_config()
        state.initialize_runtime_state(SimpleNamespace(transformer=transformer), config)
    except (AssertionError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"parallel.attention='usp' is not possible here: {error}; allowed: auto, ulysses, allgather_kv"
        ) from error


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
