"""Training examples of texts: token ids and labels, and which rows gave none."""

from __future__ import annotations

IGNORED = -100
"""The label that the losses of transformers leave out."""

ALL_TOKENS, ANSWERS_ALONE = "all", "answers"
"""Which tokens of a row training learns to predict; :data:`~..place.choices.AUTO` leaves it to the row's format."""

Example = dict[str, list[int]]
"""``input_ids`` and ``labels`` of one row, equally long."""


class ExampleRows(list[Example]):
    """Examples, and how many rows gave none.

    Attributes:
        unanswered: rows without an answer, where answers alone count.
        cut_off: rows of which no answer lies within the length of an example.
    """

    unanswered: int = 0
    cut_off: int = 0

    def left_out(self, length: int) -> list[str]:
        """A sentence for each kind of rows that were left out.

        Args:
            length: the most tokens of an example.
        """
        found = []
        if self.unanswered:
            found.append(f"{_rows(self.unanswered)} without an answer left out")
        if self.cut_off:
            found.append(f"{_rows(self.cut_off)} left out: no answer begins within {length} tokens (option length)")
        return found


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
