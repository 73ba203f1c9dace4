"""Estimate the time that a run still needs, from its recent speed."""

from collections import deque

_RECENT_STEPS = 50
# Until the first validation, a validation batch counts as a third of a training step: a forward pass without gradients.
_VALIDATION_SHARE = 1 / 3


class TimeLeft:
    """Estimates the rest of a run: training, validation of each epoch, and the prediction after training.

    Args:
        epochs: of the whole training.
        steps: training steps of an epoch.
        val_steps: validation steps of an epoch.
        steps_after: validation steps whose forward passes the prediction after training needs.
        recent_epochs: epochs over which the time beside training steps is averaged; at least as many as lie between two
            validations of whole cases.
    """

    def __init__(self, epochs: int, steps: int, val_steps: int, steps_after: float, recent_epochs: int) -> None:
        self.epochs, self.steps, self.val_steps = epochs, steps, val_steps
        self.steps_after = steps_after
        self.step_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self.rest_s: deque[float] = deque(maxlen=max(3, recent_epochs))
        self.val_step_s: deque[float] = deque(maxlen=_RECENT_STEPS)

    @property
    def seconds_per_step(self) -> float:
        """Mean of the recent training steps, waiting for data included; NaN before the first one."""
        return sum(self.step_s) / len(self.step_s) if self.step_s else float("nan")

    def left(self, epoch: int, step: int, used_s: float = 0.0, limit_s: float | None = None) -> float:
        """Return the seconds that the run still needs.

        Args:
            epoch: epochs that are complete.
            step: training steps of the next epoch that are complete.
            used_s: seconds of training so far, over all continuations.
            limit_s: time limit of the training; None: no limit.

        >>> estimate = TimeLeft(epochs=10, steps=100, val_steps=0, steps_after=0, recent_epochs=1)
        >>> estimate.step_s.append(0.5)
        >>> estimate.left(epoch=8, step=50)
        75.0
        """
        step_s = self.seconds_per_step
        val_step_s = sum(self.val_step_s) / len(self.val_step_s) if self.val_step_s else _VALIDATION_SHARE * step_s
        rest_s = sum(self.rest_s) / len(self.rest_s) if self.rest_s else self.val_steps * val_step_s
        epochs = max(0, self.epochs - epoch)
        training = step_s * max(0, epochs * self.steps - step) + rest_s * epochs
        if limit_s is not None:
            training = min(training, max(0.0, limit_s - used_s))
        return training + self.steps_after * val_step_s
