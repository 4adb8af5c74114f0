"""Files of a data set, wherever they lie: in archives or unpacked folders.

Archives (zip, tar) are read in place: TFDS's extraction needs TensorFlow for
tar, and a hundred thousand small files are slow. Zip members carry checksums,
so a damaged archive put there by hand is noticed when it is read; downloads
are compared with the MD5 sum known for them beforehand.
"""

import hashlib
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

Archive = zipfile.ZipFile | tarfile.TarFile
_BLOCK = 1 << 20


class Remote(NamedTuple):
  """An official archive.

  Attributes:
    url: where it is published.
    md5: its checksum.
  """

  url: str
  md5: str

  @property
  def filename(self) -> str:
    """Name under which it is kept."""
    return self.url.rsplit('/', 1)[1]


class Files:
  """Read access by posix path to the union of archives and one folder.

  Args:
    archives: zip or tar files, told by their names.
    folder: an unpacked tree, or None.
  """

  def __init__(
    self,
    archives: Iterable[pathlib.Path] = (),
    folder: pathlib.Path | None = None,
  ):
    self._where: dict[str, Archive | pathlib.Path] = {}
    if folder is not None:
      for base, _, names in os.walk(folder):
        for name in names:
          path = pathlib.Path(base, name)
          self._where[path.relative_to(folder).as_posix()] = path
    for archive in archives:
      opened, names = _open(archive)
      self._where |= dict.fromkeys(names, opened)

  def names(self) -> list[str]:
    """All paths, sorted."""
    return sorted(self._where)

  def read(self, name: str) -> bytes:
    """Content of one file."""
    where = self._where[name]
    if isinstance(where, zipfile.ZipFile):
      return where.read(name)
    if isinstance(where, tarfile.TarFile):
      member = where.extractfile(name)
      return b'' if member is None else member.read()
    return where.read_bytes()


def _open(path: pathlib.Path) -> tuple[Archive, list[str]]:
  """An archive and the names of its members."""
  if '.tar' in path.name:
    tar = tarfile.open(path)
    return tar, tar.getnames()
  opened = zipfile.ZipFile(path)
  return opened, opened.namelist()


def gather(
  dl_manager,
  remotes: Iterable[Remote],
  manual: pathlib.Path | None,
  unpacked: str,
) -> Files:
  """Finds or downloads what a builder reads.

  Args:
    dl_manager: TFDS's download manager.
    remotes: the official archives.
    manual: folder of files fetched by hand, or None.
    unpacked: path inside an unpacked archive that tells it is there, such as
      'GTSRB/Final_Training'; may lie at any depth of `manual`.

  Returns:
    Files with everything that was found.

  Raises:
    FileNotFoundError: if `manual` has neither all archives nor the folder.
    ValueError: if a download does not have the known checksum.
  """
  remotes = tuple(remotes)
  if manual is None:
    return Files(_download(dl_manager, remote) for remote in remotes)
  paths = [manual / remote.filename for remote in remotes]
  if all(path.is_file() for path in paths):
    return Files(paths)
  if any(manual.glob(f'**/{unpacked}')):
    return Files((p for p in paths if p.is_file()), manual)
  names = ', '.join(remote.filename for remote in remotes)
  raise FileNotFoundError(
    f'{manual} has neither {names} nor an unpacked {unpacked}; fetch them '
    f'from {", ".join(remote.url for remote in remotes)}.'
  )


def _download(dl_manager, remote: Remote) -> pathlib.Path:
  """Downloads one archive and compares its checksum."""
  path = pathlib.Path(dl_manager.download(remote.url))
  digest = hashlib.md5(usedforsecurity=False)
  with path.open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  if digest.hexdigest() != remote.md5:
    raise ValueError(
      f'{path} has MD5 {digest.hexdigest()}, {remote.url} should have '
      f'{remote.md5}; delete it and try again.'
    )
  return path
