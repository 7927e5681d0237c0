"""The public data sets by name, and their import from a folder below RAYREC_DATA or any other."""

import os
from pathlib import Path
from typing import Literal

from rayrec.data.importing.importing import ImportOptions, import_log
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import SourceError
from rayrec.data.log import Log
from rayrec.data.log.splitting import HashSplit
from rayrec.data.public.census_income import CENSUS_INCOME, CENSUS_INCOME_EDUCATION
from rayrec.data.public.coat import COAT
from rayrec.data.public.criteo import CRITEO
from rayrec.data.public.ipinyou import IPINYOU
from rayrec.data.public.kuairand import KUAIRAND
from rayrec.data.public.open_bandit import OPEN_BANDIT

PublicName = Literal["census-income", "census-income-education", "kuairand", "criteo", "ipinyou", "open-bandit", "coat"]
PUBLIC_DATASETS: dict[PublicName, PublicDataset] = {
    "census-income": CENSUS_INCOME,
    "census-income-education": CENSUS_INCOME_EDUCATION,
    "kuairand": KUAIRAND,
    "criteo": CRITEO,
    "ipinyou": IPINYOU,
    "open-bandit": OPEN_BANDIT,
    "coat": COAT,
}


def import_public(
    name: PublicName,
    out: Path | str,
    source: Path | str | None = None,
    *,
    unlabeled: Path | str | None = None,
    options: ImportOptions | None = None,
) -> Path:
    """Import a public data set as the log ``out``; returns ``out``.

    source: its file or folder (default: its folder below RAYREC_DATA). unlabeled: also write its rows without labels as that
    log, encoded like ``out``. Raises SourceError (absent or broken files, no unlabeled rows), LogError (a log exists already).
    """
    dataset = PUBLIC_DATASETS[name]
    place = Path(source) if source is not None else default_source(dataset)
    if unlabeled is not None and dataset.open_unlabeled is None:
        raise SourceError(f"{name}: this data set has no unlabeled rows")
    import_log(dataset.open_source(place), dataset.schema, dataset.split, Path(out), options)
    if unlabeled is not None and dataset.open_unlabeled is not None:
        everything = HashSplit(valid_share=0.0, test_share=0.0)
        import_log(dataset.open_unlabeled(place), Log.open(out).schema, everything, Path(unlabeled), options)
    return Path(out)


def default_source(dataset: PublicDataset) -> Path:
    """The data set's folder below RAYREC_DATA. Raises SourceError when it is not there."""
    root = Path(os.environ.get("RAYREC_DATA", "../shared/data"))
    if not (root / dataset.folder).is_dir():
        raise SourceError(
            f"{root / dataset.folder}: no such folder; download {dataset.schema.name}, then name its folder as the source "
            "or set RAYREC_DATA to the folder above it"
        )
    return root / dataset.folder
