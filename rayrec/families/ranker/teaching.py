"""A teacher in the training loop: scores each batch before the student sees it, then takes away what only the teacher may see."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from rayrec.batch import Batch
from rayrec.data.log.schema import LogSchema
from rayrec.data.log.streams import LogStream, ZippedStreams
from rayrec.families.ranker.scoring import Scorer


@dataclass(frozen=True)
class FeatureView:
    """The places of some features among the columns of batches that hold more."""

    dense: tuple[int, ...]
    categorical: tuple[int, ...]
    sequences: tuple[int, ...]

    @staticmethod
    def of(read: LogSchema, wanted: LogSchema) -> "FeatureView":
        """Where the features of ``wanted``, in its order, lie in batches of ``read``."""
        dense = [feature.name for feature in read.dense]
        categorical = [feature.name for feature in read.categorical]
        sequences = [feature.name for feature in read.sequences]
        return FeatureView(
            tuple(dense.index(f.name) for f in wanted.dense),
            tuple(categorical.index(f.name) for f in wanted.categorical),
            tuple(sequences.index(f.name) for f in wanted.sequences),
        )

    def __call__(self, batch: Batch) -> Batch:
        return replace(
            batch,
            dense=batch.dense[:, list(self.dense)],
            categorical=batch.categorical[:, list(self.categorical)],
            sequences=tuple(batch.sequences[i] for i in self.sequences),
        )


class TaughtStreams(ZippedStreams):
    """Zipped streams whose batches carry a teacher's probabilities as extras and the student's features only.

    columns: extra by task of the teacher. labeled_too: score labeled batches, too. Batches come out on the teacher's device.
    """

    def __init__(
        self,
        labeled: LogStream,
        unlabeled: LogStream | None,
        ratio: float,
        *,
        teacher: Scorer,
        columns: Mapping[str, str],
        read: LogSchema,
        student: LogSchema,
        device: torch.device,
        labeled_too: bool,
    ) -> None:
        super().__init__(labeled, unlabeled, ratio)
        self._teacher, self._device, self._labeled_too = teacher, device, labeled_too
        self._columns = {teacher.tasks.index(task): column for task, column in columns.items()}
        self._seen_by_teacher = FeatureView.of(read, teacher.bundle.schema)
        self._seen_by_student = FeatureView.of(read, student)

    def epoch_batches(self) -> Iterator[tuple[Batch, Batch | None]]:
        for batch, unlabeled in super().epoch_batches():
            yield (
                self._taught(batch, score=self._labeled_too),
                None if unlabeled is None else self._taught(unlabeled, score=True),
            )

    def _taught(self, batch: Batch, *, score: bool) -> Batch:
        batch = batch.to(self._device)
        extras = dict(batch.extras)
        if score:
            scores = self._teacher.probabilities(self._seen_by_teacher(batch))
            extras |= {column: scores[:, i] for i, column in self._columns.items()}
        return replace(self._seen_by_student(batch), extras=extras)
