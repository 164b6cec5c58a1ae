"""Options of installed packages, and of folders, are found wherever something is composed."""

import pytest
import test_startup
from faults import check_refused
from team_packages import install, write

import peftrun
from peftrun.artifacts import run_overrides
from peftrun.config.search_path import packages
from peftrun.errors import ConfigError

OURS = "defaults:\n  - lora\n  - _self_\nr: 3\n"


@pytest.fixture
def team(tmp_path_factory, monkeypatch):
    """An installed package with lora=ours."""
    site = tmp_path_factory.mktemp("site")
    folder = install(site, "ours_configs")
    write(folder, "lora/ours", OURS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    return folder


def test_an_installed_package_is_on_the_search_path(team, cli):
    assert packages.find_config_packages() == {"ours_configs": team}
    assert peftrun.load("lora=ours").lora.r == 3
    shown = cli("lora=ours", "--cfg", "job")
    assert shown.code == 0 and "r: 3" in shown.out


def test_help_and_refusals_name_its_options(team, cli, tmp_path):
    assert "lora=ours" in cli("--help").out
    check_refused(cli, tmp_path, ["lora=nosuch"], ("lora=nosuch: there is no such option", ", ours,"))


def test_nothing_heavy_is_imported_for_it(team, tmp_path):
    for args, shown in ((["--help"], "lora=ours"), (["lora=ours", "--cfg", "job"], "r: 3")):
        done = test_startup.run(tmp_path, *args)
        assert "HEAVY []" in done.stderr and shown in done.stdout, done.stderr


def test_cells_of_a_sweep_find_it(team, cli):
    shown = cli("-m", "lora=ours,dora", "action=plan")
    assert shown.code == 0 and "lora=ours" in shown.out, shown.err


def test_a_given_folder_wins_over_an_installed_package(team, tmp_path, cli):
    write(tmp_path / "working_copy", "lora/ours", OURS.replace("3", "5"))
    assert peftrun.load("lora=ours", config_dirs=[tmp_path / "working_copy"]).lora.r == 5
    assert "r: 5" in cli("--config-dir", "working_copy", "lora=ours", "--cfg", "job").out


def test_a_run_remembers_folders_and_not_installed_packages(team, trained, tmp_path, cli):
    write(tmp_path / "more", "lora/more", OURS)
    done = cli("--config-dir", "more", "lora=more", "action=inspect", f"adapter={trained}")
    assert run_overrides.read_search_path(done.run_dir) == [f"file://{tmp_path / 'more'}"]


def test_what_hides_behind_an_option_of_peftrun_is_told(team, trained, tmp_path, cli):
    path = write(team, "lora/dora", OURS)
    done = cli("lora=dora", "action=inspect", f"adapter={trained}")
    assert done.code == 0 and f"{path}: is never read, since peftrun's own lora=dora" in done.err
    assert str(path) not in cli("lora=rslora", "action=inspect", f"adapter={trained}").err
    assert peftrun.load("lora=dora").lora.use_dora


def test_a_file_that_is_no_yaml_is_named_with_its_line(team, tmp_path, cli):
    path = write(team, "lora/torn", "r: {b: ???}\n")
    check_refused(cli, tmp_path, ["lora=torn"], ("lora=torn", f"{path}, line 3, column 8", "is not YAML"))
    with pytest.raises(ConfigError, match="is not YAML"):
        peftrun.load("lora=torn")


def test_an_option_that_is_there_and_broken_is_not_called_absent(team, tmp_path, cli):
    write(team, "experiment/lost", "defaults:\n  - override /task: nosuch\n")
    check_refused(
        cli, tmp_path, ["experiment=lost"], ("experiment=lost: selects task=nosuch, and there is no such option",)
    )
