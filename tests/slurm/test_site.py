"""The site profile: defaults, files, the command line, and what is told of a bad one."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.slurm.site import Site, default_path, in_seconds, load_site, overridden


def write(tmp_path, text: str):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return path


def test_no_file_is_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_site(None) == Site()
    default_path().parent.mkdir()
    default_path().write_text("partition: big\n")
    assert load_site(None).partition == "big"


def test_a_profile(tmp_path):
    site = load_site(
        write(
            tmp_path,
            "partition: gpu\nenvironment: {A: b}\ncontainer: {image: x.sqsh, mounts: [/d:/d]}\nsbatch: ['--mem=0']\n",
        )
    )
    assert site.container.image == "x.sqsh" and site.sbatch == ("--mem=0",) and site.environment == {"A": "b"}


def test_the_command_line_comes_first(tmp_path):
    site = load_site(write(tmp_path, "partition: gpu\ntime: '1:00:00'\ncontainer: {image: x.sqsh, mounts: [/d:/d]}\n"))
    given = overridden(site, image="y.sif", partition="other", time=None)
    assert (given.partition, given.time) == ("other", "1:00:00")
    assert given.container.image == "y.sif" and given.container.is_apptainer and given.container.mounts == ("/d:/d",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("partitoin: gpu\n", "did you mean partition?"),
        ("container: {imge: x}\n", "did you mean image?"),
        ("gpus_per_node: many\n", "gpus_per_node = 'many'"),
        ("time: soon\n", "time = 'soon'"),
        ("a: [\n", "is not valid YAML"),
        ("- a\n", "mapping"),
    ],
)
def test_a_bad_profile_is_told(tmp_path, text, told):
    with pytest.raises(ConfigError) as caught:
        load_site(write(tmp_path, text))
    assert told in str(caught.value) and "site.yaml" in str(caught.value) and "fix:" in str(caught.value)


@pytest.mark.parametrize(
    "text, seconds",
    [("5", 300), ("5:30", 330), ("1:00:05", 3605), ("2-0", 172800), ("1-2:30", 95400), ("1-2:30:01", 95401), ("0", 0)],
)
def test_times_as_slurm_writes_them(text, seconds):
    assert in_seconds(text) == seconds


def test_a_missing_profile_and_a_bad_option(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_site(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="the command line: time = 'soon'"):
        overridden(Site(), image=None, time="soon")
