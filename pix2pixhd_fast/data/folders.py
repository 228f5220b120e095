"""Which files make up a data set, and which of them belong together."""

import itertools
import os
import re
import warnings
from collections.abc import Iterator

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp", ".npy", ".npz")

_CITYSCAPES = re.compile(
    r"_(leftImg8bit|gt(Fine|Coarse)_(labelIds|instanceIds|labelTrainIds|color))$"
)
_SUFFIX_STARTS = re.compile(r"(?=[_\-. ])|(?<=\d)(?=[A-Za-z])")
_PREFIX_ENDS = re.compile(r"(?<=[_\-. ])|(?<=[A-Za-z])(?=\d)")
_MAX_READINGS = 12


def find_files(options: Options) -> dict[str, list[str]]:
    """The files of a data set: a list per key of a sample, entry i of every list is scene i.

    Keys: `label` (label maps, or input pictures when `label_nc` is 0), and as the options ask for
    them `inst`, `image`, `feat`. `label` is in natural order (frame2 before frame10), folders are
    searched recursively, hidden files are left out. Files of different folders belong together by
    name (see `pair_files`). Raises `InputError` for a missing or empty folder and for files without
    a partner.
    """
    if not os.path.isdir(options.dataroot):
        wanted = ", ".join(folder for _, folder, _ in _folders(options))
        raise InputError(
            f"dataroot {options.dataroot} is not a folder: it must be one that holds {wanted}"
        )
    folders = {
        key: (os.path.join(options.dataroot, name), content)
        for key, name, content in _folders(options)
    }
    names = {key: _list_folder(folder, content) for key, (folder, content) in folders.items()}
    files = {}
    for key, (folder, _) in folders.items():
        if key != "label":
            names[key] = pair_files(names["label"], names[key], folders["label"][0], folder)
        files[key] = [os.path.join(folder, name) for name in names[key]]
    return files


def pair_files(
    anchors: list[str], partners: list[str], anchor_folder: str, partner_folder: str
) -> list[str]:
    """`partners` in the order of `anchors`: file names without folder, both in natural order.

    Two files belong together when their names without extension are equal, or become equal without
    what all files of a folder have in common at the end or the beginning (`_label`, `img_`;
    Cityscapes: `_leftImg8bit`, `_gtFine_labelIds`, ...). Where no name of one folder has anything
    to do with any of the other, equally many files are paired in order, with a warning. Raises
    `InputError` naming the first file without a partner and the folder where that is missing.
    """
    anchor_ids, partner_ids = _best_reading(anchors, partners)
    common = set(anchor_ids) & set(partner_ids)
    if not common:
        if len(anchors) != len(partners):
            raise InputError(
                f"{anchor_folder} holds {len(anchors)} files and {partner_folder} holds "
                f"{len(partners)}: both must hold one file for each scene"
            )
        if len(anchors) > 1:
            warnings.warn(
                f"the names in {anchor_folder} and {partner_folder} have nothing in common: "
                "their files are paired in sorted order",
                stacklevel=2,
            )
        return partners
    _check_ids(anchors, anchor_ids, anchor_folder, common, partner_folder)
    _check_ids(partners, partner_ids, partner_folder, common, anchor_folder)
    by_id = dict(zip(partner_ids, partners, strict=True))
    return [by_id[one] for one in anchor_ids]


def _folders(options: Options) -> list[tuple[str, str, str]]:
    """(key of the sample, folder name, what it must hold) of everything the options ask for."""
    pictures_in = options.label_nc == 0
    wanted = [("label", "A", "input pictures") if pictures_in else ("label", "label", "label maps")]
    if not options.no_instance:
        wanted.append(("inst", "inst", "instance maps (or give --no_instance)"))
    if options.needs_image:
        wanted.append(("image", "B" if pictures_in else "img", "real pictures"))
    if options.load_features:
        wanted.append(("feat", "feat", "precomputed features"))
    return [(key, f"{options.phase}_{name}", content) for key, name, content in wanted]


def _list_folder(folder: str, content: str) -> list[str]:
    """Relative names of the readable files below `folder`, in natural order."""
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        there = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
        raise InputError(
            f"folder {folder} is missing: it must hold the {content}; "
            f"{parent} holds {', '.join(there) or 'no folders'}"
        )
    names = [
        os.path.relpath(path, folder) for path in _walk(folder) if path.lower().endswith(EXTENSIONS)
    ]
    if not names:
        endings = " ".join(EXTENSIONS)
        raise InputError(
            f"folder {folder} is empty: it must hold the {content}, files that end in {endings}"
        )
    return sorted(names, key=_natural)


def _walk(folder: str) -> Iterator[str]:
    """Files below `folder` that are not hidden; linked folders are followed, each folder once."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(here)
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real not in seen:
            yield from (os.path.join(here, name) for name in files if not name.startswith("."))
        seen.add(real)


def _refuse(error: OSError) -> None:
    raise InputError(f"folder {error.filename} cannot be read: {error.strerror}") from error


def _natural(name: str) -> tuple[list, str]:
    tokens = re.split(r"(\d+)", name)
    return [int(token) if token.isdecimal() else token for token in tokens], name


def _best_reading(anchors: list[str], partners: list[str]) -> tuple[list[str], list[str]]:
    """Ids, one per file, under which most files of the two folders match; the least stripped."""
    stems = [[os.path.splitext(name)[0] for name in names] for names in (anchors, partners)]
    flat = [[os.path.basename(stem) for stem in names] for names in stems]
    if all(len(set(names)) == len(names) for names in flat):
        stems = flat
    left, right = ([_CITYSCAPES.sub("", stem) for stem in names] for names in stems)
    best, most = (left, right), -1
    for pair in itertools.product(_readings(left), _readings(right)):
        common = len(set(pair[0]).intersection(pair[1]))
        if common > most:
            best, most = pair, common
        if most == len(anchors) == len(partners):
            break
    return best


def _readings(stems: list[str]) -> list[list[str]]:
    """`stems`, then without ever more of what they share at the end and the beginning."""
    prefix = _shared_start(stems)
    suffix = _shared_start([stem[::-1] for stem in stems])
    first = stems[0]
    starts = [m.start() for m in _PREFIX_ENDS.finditer(first) if 0 < m.start() <= prefix]
    ends = [len(first) - m.start() for m in _SUFFIX_STARTS.finditer(first)]
    ends = [end for end in ends if 0 < end <= suffix]
    cuts = sorted(itertools.product([0, *starts], [0, *ends]), key=sum)[:_MAX_READINGS]
    readings = [[stem[start : len(stem) - end] for stem in stems] for start, end in cuts]
    return [stems] + [ids for ids in readings[1:] if all(ids) and len(set(ids)) == len(ids)]


def _shared_start(names: list[str]) -> int:
    """Number of characters with which all names begin."""
    least, most = min(names), max(names)
    return next(
        (i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least)
    )


def _check_ids(
    names: list[str], ids: list[str], folder: str, common: set[str], other_folder: str
) -> None:
    first_of = {}
    for name, one in zip(names, ids, strict=True):
        if one not in common:
            raise InputError(
                f"{os.path.join(folder, name)} has no partner: {other_folder} must hold a file "
                f"whose name has {one!r} in common with it"
            )
        if one in first_of:
            raise InputError(
                f"{os.path.join(folder, first_of[one])} and {os.path.join(folder, name)} are both "
                f"named {one!r}: {folder} must hold one file for each scene"
            )
        first_of[one] = name
