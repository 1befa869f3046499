"""Anchors of a branch."""

import pytest
import torch

from tapvideo.history import BranchState


def test_push_keeps_the_newest_first_and_drops_the_oldest():
    state = BranchState(2)
    for step in range(3):
        state.push(step, float(step), torch.full((1, 2, 3), step), torch.full((1, 2, 3), 10.0 * step))
    assert state.coords == [2.0, 1.0]
    assert [r[0, 0, 0].item() for r in state.residuals] == [20.0, 10.0]
    assert [p[0, 0, 0].item() for p in state.probes] == [2.0, 1.0]
    assert state.anchor_step == 2


def test_push_refuses_a_repeated_coordinate():
    state = BranchState(2)
    state.push(0, 0.0, None, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="two anchors at the same coordinate"):
        state.push(1, 0.0, None, torch.zeros(1, 2, 3))


def test_push_refuses_another_shape():
    state = BranchState(2)
    state.push(0, 0.0, None, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="features changed"):
        state.push(1, 1.0, None, torch.zeros(1, 4, 3))


def test_num_bytes_counts_both_streams():
    state = BranchState(3)
    for step in range(5):
        probe, residual = torch.zeros(2, 2, 7, 11, dtype=torch.bfloat16)
        state.push(step, float(step), probe, residual)
    assert state.num_bytes == 2 * 3 * 2 * 7 * 11 * 2


def test_reset_forgets():
    state = BranchState(3)
    state.push(0, 0.0, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    state.num_calls = 4
    state.reset()
    assert (state.num_bytes, state.num_calls, state.anchor_step) == (0, 0, None)
