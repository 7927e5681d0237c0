"""Census-Income (KDD), UCI: who earns more than 50,000, and who never married. Two or three tasks on the same people.

The two-task log follows Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts" (KDD
2018): income and never married. The three-task log adds a Bachelor's degree or higher as a task; education is then no feature.
A column that a task is made of is never a feature. The instance weight (column 24) is carried along as an extra.
Split by a hash of the row, 70 / 10 / 20.
"""

from itertools import chain
from pathlib import Path

import pyarrow as pa

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.deriving import one_of, replaced, trimmed
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import find_files, read_delimited
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, Feature, LogSchema, TaskLabel
from rayrec.data.log.splitting import HashSplit

COLUMNS = (
    "age",
    "class_of_worker",
    "industry_code",
    "occupation_code",
    "education",
    "wage_per_hour",
    "enrolled_in_education",
    "marital_status",
    "major_industry",
    "major_occupation",
    "race",
    "hispanic_origin",
    "sex",
    "labor_union_member",
    "reason_for_unemployment",
    "employment_status",
    "capital_gains",
    "capital_losses",
    "dividends",
    "tax_filer_status",
    "previous_region",
    "previous_state",
    "household_and_family_detail",
    "household_summary",
    "instance_weight",
    "migration_msa",
    "migration_region",
    "migration_within_region",
    "same_house_one_year_ago",
    "migration_previous_sunbelt",
    "employer_size",
    "parents_present",
    "father_birth_country",
    "mother_birth_country",
    "own_birth_country",
    "citizenship",
    "own_business",
    "veterans_questionnaire",
    "veterans_benefits",
    "weeks_worked",
    "year",
    "income",
)
_LABEL_SOURCES = ("marital_status", "income", "instance_weight")
_STANDARDIZED = ("age", "employer_size", "weeks_worked")
_LOG = ("wage_per_hour", "capital_gains", "capital_losses", "dividends")
_MISSING = ("", "?", "Not in universe")
_DEGREES = frozenset(
    {
        "Bachelors degree(BA AB BS)",
        "Masters degree(MA MS MEng MEd MSW MBA)",
        "Prof school degree (MD DDS DVM LLB JD)",
        "Doctorate degree(PhD EdD)",
    }
)


def _feature(name: str) -> Feature:
    if name in _STANDARDIZED:
        return DenseFeature(name, allow_missing=False)
    if name in _LOG:
        return DenseFeature(name, transform="log1p", allow_missing=False)
    return CategoricalFeature(name, missing_values=_MISSING)


def _schema(name: str, tasks: tuple[str, ...], label_sources: tuple[str, ...]) -> LogSchema:
    return LogSchema(
        name=name,
        features=tuple(_feature(column) for column in COLUMNS if column not in label_sources),
        tasks=tuple(TaskLabel(task) for task in tasks),
        extras=("instance_weight",),
    )


def _open_source(source: Path) -> RawSource:
    files = find_files(source, "census-income.*")
    return RawSource(
        "census-income",
        lambda: chain.from_iterable(read_delimited(file, ",", columns=COLUMNS, quoting=False) for file in files),
        columns_of=_columns_of,
    )


def _columns_of(raw: pa.Table) -> pa.Table:
    table = trimmed(raw)
    columns = {name: table.column(name) for name in COLUMNS if name != "income"}
    columns["income"] = replaced(table.column("income"), {"50000+.": "1", "- 50000.": "0"})
    columns["never_married"] = one_of(table.column("marital_status"), frozenset({"Never married"}))
    columns["higher_education"] = one_of(table.column("education"), _DEGREES)
    return pa.table(columns)


CENSUS_INCOME = PublicDataset(
    schema=_schema("census-income", ("income", "never_married"), _LABEL_SOURCES),
    folder="census_income_kdd",
    split=HashSplit(),
    open_source=_open_source,
    signal="strong",
)
CENSUS_INCOME_EDUCATION = PublicDataset(
    schema=_schema(
        "census-income-education", ("income", "never_married", "higher_education"), (*_LABEL_SOURCES, "education")
    ),
    folder="census_income_kdd",
    split=HashSplit(),
    open_source=_open_source,
    signal="strong",
)
