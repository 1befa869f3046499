"""Which weights a forecast step may take: a family's candidates, a calibration's, or both blended."""

import torch

from tapvideo.config import ConfigError, TapConfig
from tapvideo.history import BranchState, StepContext
from tapvideo.planning import check_steps, read_calibration
from tapvideo.predictors import Bank, calibrated_bank, candidate_bank


class Banks:
    """The candidates of every step; runs of the same plan share them, and branches unless weights are calibrated."""

    def __init__(self, config: TapConfig) -> None:
        self.config = config
        self.calibration = read_calibration(config)
        self._made: dict[tuple, Bank] = {}

    def coordinate(self, context: StepContext) -> float:
        """Where a step lies on the axis along which is forecast.

        Raises:
            ConfigError: if that is the noise level, and the pipeline does not tell it.
        """
        if self.config.coordinate == "step":
            return float(context.step)
        if context.sigma is None:
            raise ConfigError(
                "tap.coordinate='sigma' needs a pipeline that tells sigma, and this one does not; allowed here: step"
            )
        return context.sigma

    def bank(self, context: StepContext, state: BranchState, device: torch.device) -> Bank:
        """The candidates of a step, for the anchors that there are.

        Raises:
            ConfigError: if a calibration is of runs of another length, or knows no such branch.
        """
        assert state.anchor_step is not None
        config, target = self.config, self.coordinate(context)
        ahead = context.step - state.anchor_step
        branch = context.branch if config.uses_calibrated_weights else ""
        key = (branch, context.num_steps, *state.coords, target, ahead, device)
        if key not in self._made:
            if config.family == "calibrated":
                bank = calibrated_bank(self._calibrated(context, state))
            else:
                bank = candidate_bank(
                    state.coords,
                    target,
                    steps_ahead=ahead,
                    family=config.family,
                    orders=config.orders,
                    lookback=config.lookback,
                    spacing=config.spacing,
                )
                if config.blend:
                    bank = bank.blended(self._calibrated(context, state), config.blend)
            self._made[key] = bank.to(device)
        return self._made[key]

    def _calibrated(self, context: StepContext, state: BranchState) -> list[float]:
        """The calibrated weights of this branch and step."""
        assert self.calibration is not None
        check_steps(self.config, self.calibration, context.num_steps)
        anchors = [int(coordinate) for coordinate in state.coords]
        return self.calibration.weights(context.branch, anchors, context.step)
