"""The built wheel in an empty environment: it finds its configs, and trains, away from the checkout."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment that has the wheel; its libraries are borrowed from this one by a path file."""
    where = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", where, str(ROOT)],
        check=True,
        timeout=300,
    )
    venv.create(where / "env", with_pip=True)
    python = where / "env" / "bin" / "python"
    wheel = next(where.glob("peftrun-*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, timeout=300)
    site = next((where / "env" / "lib").glob("python*/site-packages"))
    libraries = Path(pytest.__file__).parent.parent
    (site / "borrowed.pth").write_text(f"{libraries}\n")
    return python


def run(python, where, *args):
    # The editable install of this environment must not be found first.
    code = "import sys; sys.path = [p for p in sys.path if p != sys.argv[1]]; del sys.argv[1]; from peftrun.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [python, "-c", code, str(ROOT), *args],
        cwd=where,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_package_is_the_wheels_and_finds_its_own_configs(python, tmp_path):
    code = "import peftrun.config.paths as p; print(p.__file__); print(p.config_dir())"
    out = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert all(line.startswith(str(Path(python).parent.parent)) for line in out), out
    done = run(python, tmp_path, "--cfg", "job")
    assert done.returncode == 0 and "learning_rate" in done.stdout


def test_the_schemas_come_along(python, tmp_path):
    code = "from peftrun.config.paths import schemas_dir; print([path.name for path in schemas_dir().iterdir()])"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "'lora.json'" in done.stdout


def test_it_trains_away_from_the_checkout(python, tmp_path, llama, on_tiny):
    done = run(python, tmp_path, *on_tiny(llama), "trainer=smoke")
    assert done.returncode == 0, done.stderr
    record = json.loads(next(tmp_path.glob("outputs/train/*/record.json")).read_text())
    assert record["status"] == "completed"
