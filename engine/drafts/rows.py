"""What a model makes of its rows, on the way to the layer of its own that guesses from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from engine.api import DraftKind
from engine.batch import KeepsRows, LoadedModel
from engine.drafts.layer import LayerDrafter
from engine.drafts.speculation import Speculation
from engine.sequence import Sequence

if TYPE_CHECKING:
    from engine.scheduler import Step

log = logging.getLogger(__name__)


class RowsOfSteps:
    """Sets rows aside after a step, and hands them on once it is known which of its guesses were right.

    Nothing is done, and the model is not asked for anything, where no such layer guesses.
    """

    def __init__(self, model: LoadedModel, speculation: Speculation) -> None:
        self._model = model
        self._speculation = speculation

    def set_aside(self, step: Step) -> None:
        """The model has just run this step, and nothing has been chosen yet."""
        if self._layer is None:
            return
        guessing = [_guesses_by_model(rows.sequence) for rows in step.rows]
        if not any(guessing):
            return
        assert isinstance(self._model, KeepsRows)
        kept, row = self._model.kept(), 0
        for rows, wanted in zip(step.rows, guessing, strict=True):
            sequence, count = rows.sequence, rows.count + len(rows.guesses)
            if wanted:
                sequence.made = sequence.n_computed, kept[row : row + count]
            row += count

    def hand_on(self, sequences: Iterable[Sequence]) -> Exception | None:
        """Tells the layer of these sequences' rows; returns what went wrong."""
        layer = self._layer
        for sequence in sequences:
            made, sequence.made = sequence.made, None
            if layer is not None and made is not None:
                try:
                    layer.take(sequence, *made)
                except Exception as failure:
                    return failure
        return None

    def end(self, sequence: Sequence) -> None:
        """A sequence's answer ends with this step."""
        layer = self._layer
        made = sequence.made is not None
        failure = self.hand_on([sequence])
        try:
            if layer is not None and made and failure is None:
                layer.finish(sequence)
        except Exception as error:
            failure = error
        if failure is not None:  # this answer needs no more guesses; the next one's will fail, and say so
            log.error("Guessing failed", exc_info=failure)

    def forget(self, sequence: Sequence) -> None:
        """A sequence's tokens, or what they are computed with, are about to change."""
        sequence.made = None
        if self._layer is not None:
            self._layer.forget(sequence)

    @property
    def _layer(self) -> LayerDrafter | None:
        drafter = self._speculation.drafter(DraftKind.MODEL)
        return drafter if isinstance(drafter, LayerDrafter) else None


def _guesses_by_model(sequence: Sequence) -> bool:
    return sequence.drafting is not None and sequence.drafting.options.kind is DraftKind.MODEL
