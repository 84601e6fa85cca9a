"""Image sets with known checksums, transforms of them, and the synthetic data of the papers.

| module | what it holds |
|---|---|
| ``images`` | the image sets: the registry, what of it is here, loading, preparing a directory |
| ``files`` | files with known checksums: found, downloaded, checked, copied |
| ``formats`` | the formats of these files |
| ``dataset`` | training and test data with their provenance; some classes of them |
| ``transforms`` | size, scale and label noise |
| ``synthetic`` | tasks that are drawn |
"""

from .dataset import Dataset, subset
from .files import Remote, cache_directory, data_directory, sha256
from .formats import DataError
from .images import REGISTRY, Corpus, available, fetch, load, prepare
from .synthetic import (
    associative_recall,
    gaussian_mixture,
    sorting,
    structured_targets,
    teacher_student,
)
from .transforms import corrupt_labels, flip_labels, resize, standardise

__all__ = [
    "REGISTRY",
    "Corpus",
    "DataError",
    "Dataset",
    "Remote",
    "associative_recall",
    "available",
    "cache_directory",
    "corrupt_labels",
    "data_directory",
    "fetch",
    "flip_labels",
    "gaussian_mixture",
    "load",
    "prepare",
    "resize",
    "sha256",
    "sorting",
    "standardise",
    "structured_targets",
    "subset",
    "teacher_student",
]
