"""How many bytes ranks told each other, by kind of step and of message."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Messages of one kind."""

    bytes: int = 0
    """Received from other ranks; what a rank keeps for itself is not counted."""
    calls: int = 0
    """Collectives."""


@dataclass(slots=True)
class Ledger:
    """Tallies of this rank, by the step they fell on, its kind, and what was exchanged."""

    step: int = -1
    kind: str = "start"
    tallies: dict[tuple[int, str, str], Tally] = field(default_factory=dict[tuple[int, str, str], Tally])

    def turn(self, step: int, kind: str) -> None:
        """What follows belongs to this step."""
        self.step, self.kind = step, kind

    def count(self, what: str, received: int) -> None:
        """One collective."""
        tally = self.tallies.setdefault((self.step, self.kind, what), Tally())
        tally.bytes += received
        tally.calls += 1

    def total(self, *, kind: str | None = None, what: str | None = None, step: int | None = None) -> Tally:
        """The sum over everything that is not asked for by name."""
        total = Tally()
        for (at, of, about), tally in self.tallies.items():
            if kind in (None, of) and what in (None, about) and step in (None, at):
                total.bytes += tally.bytes
                total.calls += tally.calls
        return total

    def by_kind(self) -> dict[str, dict[str, Tally]]:
        """Tallies by kind of step, then by what was exchanged."""
        kinds: dict[str, dict[str, Tally]] = {}
        for _, kind, what in self.tallies:
            kinds.setdefault(kind, {})[what] = self.total(kind=kind, what=what)
        return kinds

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self.tallies.clear()
        self.turn(-1, "start")
