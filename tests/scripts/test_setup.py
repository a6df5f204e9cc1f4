"""scripts/setup.sh: which Python it takes and what it says when it cannot go on.

Nothing is installed, no network is asked.
"""

import pathlib
import shutil
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
TOOLS = (
    "bash",
    "timeout",
    "dirname",
    "uname",
    "sha256sum",
    "cat",
    "df",
    "awk",
    "mktemp",
    "rm",
    "grep",
    "tail",
    "mkdir",
    "pwd",
)


@pytest.fixture
def machine(tmp_path):
    """A repository with setup.sh alone, and a machine without any Python: {"repository": folder, "bin": the
    only folder on PATH}.
    """
    (tmp_path / "repo sitory" / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "setup.sh", tmp_path / "repo sitory" / "scripts")
    for name in ("requirements.txt", "requirements-test.txt"):
        (tmp_path / "repo sitory" / name).write_text(f"# {name}\n")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return {"repository": tmp_path / "repo sitory", "bin": tmp_path / "bin"}


def program(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def python(path, says=None):
    """A Python 3.10 or 3.9 that works: it says where it is, whatever it is asked."""
    return program(path, f"echo {says or path}")


def setup(machine, *arguments, **environment):
    """Runs setup.sh from another folder; returns (exit code, standard output, standard error)."""
    done = subprocess.run(
        [machine["bin"] / "bash", machine["repository"] / "scripts" / "setup.sh", *arguments],
        cwd="/",
        text=True,
        capture_output=True,
        env={"PATH": str(machine["bin"]), "HOME": str(machine["bin"].parent), **environment},
    )
    return done.returncode, done.stdout, done.stderr


def which(machine, **environment):
    code, out, err = setup(machine, "--which", **environment)
    assert code == 0 and err == ""
    return out.strip()


def test_a_shim_that_only_prints_an_error_does_not_count(machine):
    """A python3.10 that fails, as pyenv's does, and one that says nothing are passed over for a python3.9
    that works.
    """
    program(machine["bin"] / "python3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127")
    right = python(machine["bin"] / "python3.9")
    assert which(machine) == str(right)


def test_pythons_are_tried_in_order(machine):
    """PYTHON first, then python3.10, python3.9, python3, python, then pyenv's, 3.10 before 3.9."""
    home = machine["bin"].parent
    places = [
        home / "mine" / "python",
        *(machine["bin"] / name for name in ("python3.10", "python3.9", "python3", "python")),
        home / ".pyenv/versions/3.10.13/bin/python",
        home / ".pyenv/versions/3.9.18/bin/python",
    ]
    for place in reversed(places):
        python(place)
        assert which(machine, PYTHON=str(places[0])) == str(place)


def test_a_python_of_another_version_or_without_venv_does_not_count(machine):
    """The real check, run by the Python that runs this test: right version, and the modules that make an
    environment.
    """
    body = 'exec "{}" -c "import sys; sys.version_info = (3, {}, 0); sys.modules[\'{}\'] = None\n$2"'
    for minor, missing, counts in (
        (10, "x", True),
        (9, "x", True),
        (11, "x", False),
        (8, "x", False),
        (10, "ensurepip", False),
        (10, "venv", False),
    ):
        program(machine["bin"] / "python3", body.format(sys.executable, minor, missing))
        code, out, _ = setup(machine, "--which")
        assert (code, bool(out.strip())) == ((0, True) if counts else (2, False)), (minor, missing)


def test_without_python_and_uv_it_says_what_to_install(machine):
    """One sentence, exit code 2, no .venv."""
    for arguments in (["--which"], []):
        code, _, err = setup(machine, *arguments)
        assert code == 2 and err.startswith("error: found no Python 3.9 or 3.10") and err.count("\n") == 1
    assert (
        "install python3.10 and python3.10-venv, or uv" in err
        and not (machine["repository"] / ".venv").exists()
    )


def test_uv_that_cannot_fetch_a_python_is_told(machine):
    """One sentence that asks for the network; the reason is in the log."""
    program(machine["bin"] / "uv", '[ "$1" = --version ] || { echo dns >&2; exit 1; }')
    code, _, err = setup(machine)
    assert code == 2 and "uv could not fetch one (setup.log says why)" in err and err.count("\n") == 1
    assert "dns" in (machine["repository"] / "setup.log").read_text()


def test_a_python_that_uv_brings_is_used(machine):
    """Found through uv alone, it makes .venv."""
    brought = program(machine["bin"].parent / "uv-python", 'echo "$@" >&2; exit 1')
    program(machine["bin"] / "uv", f'[ "$2" != find ] || echo {brought}')
    code, _, err = setup(machine)
    assert code == 2 and err == f"error: {brought} could not make .venv (setup.log says why).\n"
    assert "-m venv --clear .venv" in (machine["repository"] / "setup.log").read_text()


def test_too_little_disk_is_told_before_anything_is_made(machine):
    """The sentence says how much there is and how much it takes."""
    (machine["bin"] / "df").unlink()
    program(machine["bin"] / "df", "echo head; echo '/dev/x 9 9 2500000 1% /'")
    python(machine["bin"] / "python3")
    code, out, err = setup(machine)
    assert (
        (code, out) == (2, "")
        and "has 2 GB of free disk, expected 8" in err
        and not (machine["repository"] / ".venv").exists()
    )


def installed(machine, pip):
    """A machine whose Python makes a .venv with the fake pip given as shell lines; $LOG is pip's log."""
    venv = machine["bin"].parent / "venv-python"
    program(
        venv,
        'case "$*" in *"-m pip install"*) for LOG; do case "$LOG" in setup.log) break;; esac; done\n'
        f"{pip};;\n"
        "--version) echo Python 3.10.0;; esac",
    )
    (machine["bin"] / "cp").symlink_to(shutil.which("cp"))
    program(
        machine["bin"] / "python3.10",
        f'case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp {venv} .venv/bin/python;; '
        f"*) echo {machine['bin'] / 'python3.10'};; esac",
    )


@pytest.mark.parametrize(
    "log, sentence",
    [
        (
            "WARNING: Retrying after connection broken by NewConnectionError",
            "pip cannot reach its package index",
        ),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for oneflow", "No matching distribution found for oneflow"),
    ],
)
def test_a_failure_of_pip_becomes_a_sentence(machine, log, sentence):
    """pip's own lines go to the log.

    Network, disk and the rest are told apart, and the next run tries again.
    """
    installed(machine, f'echo "{log}" >> "$LOG"; echo noise >&2; exit 1')
    for _ in range(2):
        code, out, err = setup(machine)
        assert code == 2 and sentence in err and err.count("\n") == 1 and "installing requirements.txt" in out


def test_a_second_run_installs_nothing_until_the_requirements_change(machine):
    """The stamp of each requirements file is its hash; --test asks for two of them."""
    installed(machine, 'echo "$@" >> pip-runs')
    runs = machine["repository"] / "pip-runs"

    def count(*arguments):
        code, out, err = setup(machine, *arguments)
        assert (code, err) == (0, "") and out.endswith("ready: .venv, Python 3.10.0\n")
        return len(runs.read_text().splitlines())

    assert [count(), count(), count("--test"), count("--test"), count()] == [1, 1, 2, 2, 2]
    assert "--requirement=requirements-test.txt" in runs.read_text().splitlines()[1]
    (machine["repository"] / "requirements.txt").write_text("# changed\n")
    assert [count(), count()] == [3, 3]


def test_a_venv_of_another_python_is_left_alone(machine):
    """It may be the user's: the sentence says what to remove."""
    program(
        machine["repository"] / ".venv/bin/python", '[ "$1" = --version ] && echo Python 3.12.1 || exit 3'
    )
    code, _, err = setup(machine)
    assert code == 2 and ".venv holds Python 3.12.1, expected 3.9 or 3.10" in err
    assert (machine["repository"] / ".venv/bin/python").exists()


def test_an_unknown_option_is_refused(machine):
    """The sentence lists those that there are."""
    code, _, err = setup(machine, "--tests")
    assert code == 2 and err == "error: found option '--tests', expected --test, --which or none.\n"
