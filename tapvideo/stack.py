"""`TapStack`: stands in for a transformer's blocks and decides, step by step, whether they run."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapvideo.banks import Banks
from tapvideo.chunks import exact_fp32
from tapvideo.config import ConfigError, TapConfig
from tapvideo.guard import HELD, Guard
from tapvideo.history import BranchState, StepContext
from tapvideo.parallel.attention import Rows
from tapvideo.parallel.kept import KeepOptions, KeptKV
from tapvideo.parallel.shard import TokenShard
from tapvideo.planning import check_starts, make_plan
from tapvideo.predictors import Bank
from tapvideo.probe import gram, proxy_error
from tapvideo.recompute import stale_tokens
from tapvideo.schedule import Plan, StepKind
from tapvideo.select import select_predictor
from tapvideo.stream import Stream, StreamAdapter, forecast_parts
from tapvideo.trace import StepRecord, Trace, timed
from tapvideo.twin import Before

logger = logging.getLogger(__name__)

RECOMPUTED = "recomputed"
"""What maps, shares and reports call a token that ran through the blocks on a forecast step."""

RECOMPUTE = "recompute"
"""What the ledger calls a forecast step on which tokens are recomputed."""


class TapStack(nn.Module):
    """One module in place of all blocks: it runs them on a full step and forecasts their joint output on the others.

    The blocks are held in a tuple, which `nn.Module` does not register: `state_dict`, offloading and compilation see
    the real blocks only where the transformer itself has them.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        adapter: StreamAdapter,
        shard: TokenShard,
        config: TapConfig,
        trace: Trace,
        guard: Guard | None = None,
    ) -> None:
        super().__init__()
        if config.probe != "modulated" and config.probe_depth >= len(blocks):
            depths = f"1 to {len(blocks) - 1}"
            raise ConfigError(
                f"tap.probe_depth={config.probe_depth} of a model with {len(blocks)} blocks; allowed: {depths}"
            )
        layers = config.recompute.kv_layers
        if layers and max(layers) >= len(blocks):
            most = len(blocks) - 1
            raise ConfigError(f"tap.recompute.kv_layers={layers} of {most + 1} blocks; allowed: 0 to {most}")
        self.blocks = tuple(blocks)
        self.adapter = adapter
        self.shard = shard
        self.config = config
        self.trace = trace
        self.guard = guard
        self.call: tuple[StepContext, BranchState] | None = None
        """Where the loop stands, set around every forward by whoever knows."""
        self.gathers = False
        """Give out all ranks' tokens: more bytes than after the head, which then need not know of ranks."""
        self._before: Before | None = None
        self._plans: dict[int, Plan] = {}
        self._banks = Banks(config)
        self.keep = KeepOptions(
            config.recompute.kv_dtype, frozenset(layers) if layers else None, config.recompute.kv_offload
        )
        self._needs_probe = config.needs_probe

    def plan(self, num_steps: int) -> Plan:
        """The kinds of all steps of a run."""
        if num_steps not in self._plans:
            self._plans[num_steps] = make_plan(self.config, num_steps)
            least = self.config.schedule.min_steps
            if self.config.enabled and num_steps < least:
                message = "tapvideo: a run of %d steps is not accelerated (schedule.min_steps=%d)"
                logger.warning(message, num_steps, least)
        return self._plans[num_steps]

    def reads_weights(self, num_steps: int) -> bool:
        """Whether a run reads block 0's weights outside of the block, for probes."""
        probes = self._needs_probe and self.config.probe == "modulated"
        return probes and StepKind.FORECAST in self.plan(num_steps)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stack's output for this rank's tokens (or all, see `gathers`); computed where nobody tells the step.

        Raises:
            PeerLost: if another rank that shares the tokens does not answer.
        """
        stream = self._own(self.adapter.stream(args, kwargs))
        if self.call is None:
            self.shard.comm.ledger.turn(-1, StepKind.FULL)
            output = self._run_blocks(stream)
        else:
            output = self._step(stream, *self.call)
        if self.gathers:
            output = replace(output, hidden=self.shard.gather_tokens(output.hidden, what="output"))
        return self.adapter.result(output)

    def _step(self, stream: Stream, context: StepContext, state: BranchState) -> Stream:
        device, kind = stream.hidden.device, self._kind(stream.hidden, context, state)
        state.num_calls += 1
        self.shard.comm.ledger.turn(context.step, kind)
        with timed(device) as watch:
            if kind is StepKind.FULL:
                output, record = self._full(stream, context, state)
            else:
                output, record = self._forecast(stream, context, state)
        record["stack"] = watch
        self.trace.records.append(
            StepRecord(context.branch, context.step, context.num_steps, kind, sigma=context.sigma, **record)
        )
        return output

    def _own(self, stream: Stream) -> Stream:
        """Of the whole sequence, what this rank has."""
        return stream if self.shard.is_whole else self.adapter.take_tokens(stream, self.shard.positions)

    def gather_trace(self) -> None:
        """Complete the records of the last run with what other ranks chose for their tokens.

        Raises:
            PeerLost: if another rank does not answer.
        """
        if self.shard.is_whole:
            return
        self.shard.comm.ledger.turn(-1, "trace")
        weight = len(self.shard.positions)
        for record in self.trace.records:
            if record.choice is not None:
                record.choice = self.shard.gather_tokens(record.choice, what="trace")
            if record.shares is not None:
                record.shares = self.shard.comm.mean(record.shares, weight, what="trace")

    def forget(self) -> None:
        """What comes next is no branch of this step."""
        self._before = None

    def runs_no_block(self, batch: int) -> bool:
        """Whether the coming forward of so many sequences is a forecast in which no block has a part."""
        if self.call is None or self._depth or self.config.recompute.budget:
            return False
        context, state = self.call
        expected = (batch, len(self.shard.positions))
        is_known = bool(state.residuals) and state.residuals[0].shape[:2] == expected
        return is_known and self._due(context, state) is StepKind.FORECAST

    def _kind(self, hidden: Tensor, context: StepContext, state: BranchState) -> StepKind:
        """What is due; anchors of sequences of another shape are dropped first."""
        if state.residuals and state.residuals[0].shape != hidden.shape:
            state.reset()
        if state.num_calls == 0:
            state.first_step = context.step
            check_starts(self.config, self._banks.calibration, context.step)
            if self.guard is not None:
                self.guard.begin()
        return self._due(context, state)

    def _due(self, context: StepContext, state: BranchState) -> StepKind:
        """The plan's, but full where there is nothing to forecast from, or an expert that began in mid-run warms up."""
        warms_up = state.first_step > 0 and state.num_calls < self.config.schedule.expert_warmup
        if warms_up or not state.residuals:
            return StepKind.FULL
        return self.plan(context.num_steps)[context.step]

    def _run_blocks(
        self, stream: Stream, start: int = 0, stop: int | None = None, kept: KeptKV | None = None
    ) -> Stream:
        """All of this rank's tokens through the blocks, which keep their K/V where they are given a place for it."""
        self.shard.attention.begin(self.shard.all_rows(), kept)
        for block in self.blocks[start:stop]:
            stream = self.adapter.run(block, stream)
        return stream

    def _full(self, stream: Stream, context: StepContext, state: BranchState) -> tuple[Stream, dict[str, Any]]:
        if StepKind.FORECAST not in self.plan(context.num_steps)[context.step :]:
            state.release()  # nobody will ask for anchors any more, and the VAE is glad of the room
            self.forget()
            return self._run_blocks(stream), {}
        device, depth, kept = stream.hidden.device, self._depth, self._kept(state)
        partial = self._run_blocks(stream, stop=depth, kept=kept)
        with timed(device) as before, torch.no_grad():
            again = self._before.probe(context, state) if self._before and not depth else None
            own = zip(stream.parts, partial.parts, strict=True)
            probes = [self._probe(*both) for both in own] if again is None else [again]
            if self.guard is not None and state.residuals:
                self.guard.foretell(context, state, probes[0], self._banks.bank(context, state, device), self.shard)
            state.trim(state.depth - 1)  # the oldest makes room before the blocks need it
        output = self._run_blocks(partial, start=depth, kept=kept)
        with timed(device) as after, torch.no_grad():
            coordinate = self._banks.coordinate(context)
            for given, made, probe, anchors in zip(
                stream.parts, output.parts, probes, state.parts(len(stream.parts)), strict=True
            ):
                anchors.push(context.step, coordinate, probe, made.hidden - given.hidden)
            if self.guard is not None:
                self.guard.judge(context, state, self.shard.comm)
        shared = self._before.num_bytes(context, state) if self._before else 0
        self.trace.note_bytes(context.branch, anchors=state.num_bytes - shared, kv=kept.num_bytes if kept else 0)
        self._before = Before(context, state)
        return output, {"overhead": (before, after)}

    @torch.no_grad()
    def _forecast(self, stream: Stream, context: StepContext, state: BranchState) -> tuple[Stream, dict[str, Any]]:
        bank = self._banks.bank(context, state, stream.hidden.device)
        held = self.guard is not None and not self.guard.trusts(context.branch)
        if held:
            bank = bank.held()
        if not self._needs_probe or (held and state.kept is None):
            output = forecast_parts(stream, state, [bank.applied[:1, None] for _ in stream.parts])
            told = {"labels": (HELD,), "shares": bank.applied.new_ones(1)} if held else {"labels": bank.labels[:1]}
            return output, told
        error, *beside = self._errors(stream, context, state, bank)
        judged = error
        if self.config.choice == "sample":  # of all ranks' tokens, or each rank would choose for itself
            judged = self.shard.mean_over_tokens(error, context.given).expand_as(error)
        choice = select_predictor(judged, choice="token")
        # A companion is whole on every rank: each of them sees all there is to choose by.
        choices = [choice, *(select_predictor(own, choice=self.config.choice) for own in beside)]
        output, labels = forecast_parts(stream, state, [bank.applied[own] for own in choices]), bank.labels
        if held:
            choice, labels = torch.zeros_like(choice), (HELD,)
        if state.kept is not None:
            rows = self._stale(error.gather(-1, choices[0][..., None]).squeeze(-1))
            if rows.own is not None and sum(rows.counts):
                output = self._recompute(output, stream, rows, state.kept)
                choice, labels = choice.index_fill(1, rows.own, len(labels)), (*labels, RECOMPUTED)
        if self.config.maps:  # shares can be told from them
            return output, {"labels": labels, "choice": choice.to(torch.int8)}
        shares = (choice[..., None] == torch.arange(len(labels), device=choice.device)).float().mean((0, 1))
        return output, {"labels": labels, "shares": shares}

    def _errors(
        self, stream: Stream, context: StepContext, state: BranchState, bank: Bank
    ) -> list[Float[Tensor, "b n p"]]:
        """Of every candidate for every token, by sequence; this rank's alone: exchanges are made for every branch."""
        again = self._before.errors(context, state) if self._before else None
        if again is not None:
            return [again]
        partial, found = self._run_blocks(stream, stop=self._depth), []
        for given, made, anchors in zip(stream.parts, partial.parts, state.parts(len(stream.parts)), strict=True):
            probe = self._probe(given, made)
            assert probe is not None
            with exact_fp32(given.hidden.device):
                found.append(proxy_error(gram(probe, anchors.probes), bank.forms, proxy=self.config.proxy))
        self._before = Before(context, state, found[0])
        return found

    def _stale(self, error: Float[Tensor, "b n"]) -> Rows:
        """The tokens to recompute, agreed on by all ranks: every rank sees the errors of all."""
        recompute = self.config.recompute
        stale = stale_tokens(self.shard.gather_errors(error), threshold=recompute.threshold, budget=recompute.budget)
        return self.shard.some_rows(stale)

    def _recompute(self, output: Stream, stream: Stream, rows: Rows, kept: KeptKV) -> Stream:
        """These tokens as the blocks make them, on all tokens' kept K/V, written over their forecast.

        A companion goes through the blocks as a whole, as text does: recomputed tokens attend to it.
        """
        assert rows.own is not None
        self.shard.comm.ledger.turn(self.shard.comm.ledger.step, RECOMPUTE)
        self.shard.attention.begin(rows, kept)
        fresh = self.adapter.take_tokens(stream, rows.own)
        for block in self.blocks:
            fresh = self.adapter.run(block, fresh)
        output.hidden.index_copy_(1, rows.own, fresh.hidden)
        return replace(output, companion=fresh.companion)

    def _kept(self, state: BranchState) -> KeptKV | None:
        """Where the layers of this branch keep their K/V; None where nothing is ever recomputed."""
        if self.config.recompute.budget and state.kept is None:
            state.kept = KeptKV(self.keep)
        return state.kept

    @property
    def _depth(self) -> int:
        """Blocks that run for the probe on every step."""
        return self.config.probe_depth if self._needs_probe and self.config.probe != "modulated" else 0

    def _probe(self, stream: Stream, partial: Stream) -> Tensor | None:
        """Of a sequence before the blocks, and after those that run for the probe."""
        if not self._needs_probe:
            return None
        if not self._depth:
            return self.adapter.modulated_input(self.blocks[0], stream)
        return partial.hidden - stream.hidden if self.config.probe == "block_residual" else partial.hidden
