"""What pictures are held against: a set of pictures, or published statistics of one."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.frechet import Moments
from pipelines.artefact import file_hash
from pipelines.errors import DataError
from pipelines.scoring.sets import PictureSet, open_set

REMEDY = (
    "Convert it where you trust it: python -c \"import numpy as np; s = np.load('OLD.npz', allow_pickle=True); "
    "np.savez('NEW.npz', mu=s['mu'], sigma=s['sigma'])\" (a .pkl likewise, through pickle.load)."
)


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and covariance (d, d) of features that somebody else has made; of how many pictures nobody says."""

    title: str
    sha256: str
    mean: np.ndarray
    cov: np.ndarray

    @property
    def moments(self) -> Moments:
        """For the Fréchet distance, which asks for nothing else."""
        return Moments(n=2, mean=self.mean, scatter=self.cov)  # over n - 1 = 1


Reference = PictureSet | Statistics


def open_reference(path: str, *, split: str = "train") -> Reference:
    """Open a folder of pictures or shards, or an .npz of statistics. Raises DataError."""
    if path.endswith((".npz", ".pkl", ".pickle")):
        return read_statistics(Path(path))
    return open_set(path, split=split, title="reference", captions=False)


def read_statistics(path: Path) -> Statistics:
    """Read `mu` and `sigma` of an .npz, as ADM, TTUR, pytorch-fid and clean-fid write them; nothing is unpickled.

    Raises DataError for a pickle, other arrays, shapes that do not fit, values that are not finite.
    """
    if not path.is_file():
        raise DataError(f"There are no statistics at {path}.")
    if path.suffix != ".npz":
        raise DataError(f"{path} is a pickle, which could run anything when it is read. {REMEDY}")
    try:
        with np.load(path, allow_pickle=False) as found:
            names = found.files
            if "mu" not in names or "sigma" not in names:
                raise DataError(f"{path} holds {', '.join(names) or 'nothing'}: expected mu (d,) and sigma (d, d).")
            mean, cov = (np.asarray(found[name], dtype=np.float64) for name in ("mu", "sigma"))
    except ValueError as error:
        raise DataError(f"{path} holds pickled objects, which could run anything when read. {REMEDY}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no whole .npz file ({error}): fetch it again.") from error
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not len(mean):
        raise DataError(f"{path}: mu is {mean.shape} and sigma {cov.shape}, expected (d,) and (d, d).")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise DataError(f"{path} holds values that are not finite: make it again.")
    if not np.allclose(cov, cov.T, rtol=1e-5, atol=1e-8 * float(np.abs(cov).max())):
        raise DataError(f"{path}: sigma is not symmetric, so it is no covariance.")
    return Statistics(path.name, file_hash(path), mean, (cov + cov.T) / 2)
