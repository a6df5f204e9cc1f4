"""README.md, CONTRIBUTING.md and docs/: commands parse, what they name is there or was made, links lead
somewhere.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import pytest
from conftest import ROOT

from util import UserError

PAGES = {  # README first: what its commands make is there for the other pages
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
USERS_OWN = {  # what only the user has, and words by which the text of the page introduces it
    "sorted_data_acl": "sorted_data_acl",
    "multinli_1.0": "multinli_1.0",
    "uncased_L-12_H-768_A-12": "BERT-base",
    "uncased_L-12_H-768_A-12_oneflow": "BERT-base",
    "torch-env": "PyTorch and transformers",
    "reviews.csv": "a CSV, TSV or JSONL file",
    "texts.txt": "one text a line",
    "unlabelled.tsv": "FDU-MTL's files",
    "more.tsv": "a TSV with the text column",
    "-": "`-` is standard input",
}
MADE_BY_SCRIPT = {
    "scripts/setup.sh": [".venv"],
    "scripts/test.sh": [".venv"],
    "scripts/demo.sh": [".venv", "data/DEMO", "models/MiniLM", "output/demo-teacher", "output/demo-student"],
}
MADE_BY_FLAG = re.compile(
    r"--(target|output\w*|results|model_save_dir|knowledge_dir|ofrecord_dir|download_dir)"
)
PATH_FLAG = re.compile(
    r"--(\w*_dir|\w*_file|\w*_python|model|student_model|teacher_model"
    r"|source|target|reviews|resume_from|output|results)"
)
PATH_VARIABLE = re.compile(r"(\w+_)?(DIR|FILE|PYTHON|MODEL|RUN)")
PLACEHOLDER = re.compile(r"([A-Z]+_)*(FOLDER|RUN|SNAPSHOT|DIR|FILE|NAME|TEACHER|STUDENT|MODEL)")
OTHER_PROGRAMS = {"source", "cd", "git", "cat", "head", "less", "sed", "tar"}
ABSOLUTE = re.compile(r"(?<![\w.:/*)>-])(~|/(home|root|tmp|work|usr|opt|mnt|Users))/")

# --------------------------------------------------------------------------------------- reading a page


class Command(NamedTuple):
    """A command of a page: its words, the variables before it, whether it stands in a block or within a
    sentence.
    """

    words: list
    variables: dict
    in_block: bool


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def prose(text):
    """The text without its blocks of code, each paragraph on one line."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"^(?!#)(.*\S) *\n *(?=[^\s|#>-])", r"\1 ", text, flags=re.M)


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", prose(text))


def split_commands(script, in_block=True):
    """The Commands of a piece of shell: its lines, parted by && ; | too.

    Comments are left out, continued lines joined. What is exported stands in the variables of all commands
    after it.
    """
    commands, exported = [], {}
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if not re.fullmatch("[&;|]+", word):
                words.append(word)
            elif words:
                variables, rest = split_variables(words[words[0] == "export" :])
                if words[0] == "export":
                    exported.update(variables)
                commands.append(Command(rest, {**exported, **variables}, in_block))
                words = []
    return commands


def split_variables(words):
    """The variables that stand before a command, {name: value}, and the words of the command."""
    variables, words = {}, list(words)
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words


def commands_of(text):
    """All Commands of a page: those of the bash blocks, then those within sentences."""
    starts = re.compile(r"([A-Z_]+=\S+ )*(python3? |bash |source |(bash )?scripts/\w+\.sh( |$))")
    inside = [code for code in inline_code(text) if starts.match(code)]
    return [c for block in blocks(text, "(?:bash|sh|shell)") for c in split_commands(block)] + [
        c for code in inside for c in split_commands(code, in_block=False)
    ]


# --------------------------------------------------------------------------------------- what a script takes


class Parser(BaseException):
    """Carries a script's own parser out of its main()."""


@functools.cache
def parser_of(path):
    """The argparse parser of the Python file at `path`, taken when its main() is about to parse.

    None: it has none.
    """
    if (
        "parse_args(" not in (source := (ROOT / path).read_text(encoding="utf-8"))
        and "config.parse(" not in source
    ):
        return None

    def caught(self, *_):
        raise Parser(self)

    name = str(pathlib.Path(path).with_suffix("")).replace("/", ".")
    module = importlib.import_module(name)
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", caught),
        mock.patch.object(sys, "argv", [path]),
        pytest.raises(Parser) as seen,
    ):
        module.main()
    return seen.value.args[0]


def complaint(parser, words, required=True):
    """Why the parser refuses the words, None where it takes them."""
    needed = [action for action in parser._actions if action.required]
    err = io.StringIO()
    try:
        for action in needed:
            action.required = required
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            args = argparse.ArgumentParser.parse_args(parser, words)
        if hasattr(args, "teacher_seeds"):  # scripts.reproduce, which reads its rows after parsing
            importlib.import_module("scripts.reproduce.rows").chosen_rows(args.rows)
    except UserError as error:
        return str(error)
    except SystemExit as end:
        return err.getvalue().strip() if end.code else None
    finally:
        for action in needed:
            action.required = True
    return None


def stubbed(path, words, variables, folder):
    """The commands that a shell script gives to $PYTHON, a stand-in that prints its words."""
    stub = folder / "python"
    stub.write_text('#!/bin/bash\necho "python3 ${*@Q}"\n', encoding="utf-8")
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], **variables, "PYTHON": str(stub)}
    for name in ("TEACHER_RUN", "STUDENT_RUN"):  # a finished run would be left alone
        if f'use_finished_run "${name}"' in (ROOT / path).read_text(encoding="utf-8"):
            default = {"TEACHER_RUN": "teacher", "STUDENT_RUN": "student"}[name]
            environment.setdefault(name, f"output/{variables.get('TASK_NAME', 'senti')}-{default}")
            if (ROOT / environment[name] / "results.json").exists():
                environment[name] += "-of-the-test"
    done = subprocess.run(
        ["bash", str(ROOT / path), *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode == 0, done.stderr
    return split_commands(done.stdout)


# --------------------------------------------------------------------------------------- checking


class Checker:
    """Goes through a page's commands in order, notes what each makes, and collects what is wrong.

    Args:
        text: the page; folder: for what the check writes; made: what earlier pages' commands made.
    """

    def __init__(self, text, folder, made=()):
        self.text, self.folder, self.made, self.later, self.faults = text, folder, set(made), set(), []
        self.activated = ".venv" in self.made
        for command in commands_of(text):
            self.check(command)
        for code, path in self.later:
            if not self.known(path):
                self.faults.append(f"{code}: no command makes {path}")
        self.flags_in_sentences()
        self.files_in_sentences()

    def known(self, path):
        """Is it in the repository, made before, a placeholder, or the user's own?"""
        path = path.rstrip("/")
        first, _, rest = path.partition("/")
        placeholder = (
            first if PLACEHOLDER.fullmatch(first) else rest.partition("/")[0] if first == "output" else ""
        )
        if (
            "..." in path
            or PLACEHOLDER.fullmatch(placeholder)
            and re.search(rf"\b{placeholder}\b", prose(self.text))
        ):
            return True
        if any(first == own and words in prose(self.text) for own, words in USERS_OWN.items()):
            return True
        return any(path == there or path.startswith(there + "/") for there in self.made) or path in in_git()

    def need(self, path, command):
        if command.in_block and not self.known(path):
            self.faults.append(f"{shlex.join(command.words)}: nothing before it makes {path}")
        elif not command.in_block:
            self.later.add((shlex.join(command.words), path))

    def fault(self, command, why):
        self.faults.append(f"{shlex.join(command.words)}: {why}")

    def check(self, command):
        for name, value in command.variables.items():
            if not name_is_read(name):
                self.fault(command, f"nothing reads {name}")
            if PATH_VARIABLE.fullmatch(name) and not name.endswith("_RUN"):
                self.need(value, command)
        words = [word for word in command.words if word != "bash"]
        if not words:
            return
        program, *rest = words
        if program.startswith(("/", "~")) or any(word.startswith(("/", "~")) for word in rest):
            self.fault(command, "an absolute path")
        if program.rpartition("/")[2] in ("python", "python3"):
            if "/" in program:
                self.need(program, command)
            elif command.in_block and not self.activated:
                self.fault(command, "nothing before it activates .venv")
            self.check_python(command, rest)
        elif program.startswith("scripts/") or program.endswith(".sh") or program == ".ci/run":
            self.check_shell(command, program, rest)
        elif program == "source":
            self.need(rest[0], command)
            self.activated = True
        elif program not in OTHER_PROGRAMS:
            self.fault(command, f"unknown program {program}")

    def check_python(self, command, words):
        if not words or words[0] == "-c":
            return self.fault(command, "not a script and not a module")
        module, words = words[0] == "-m", words[1:] if words[0] == "-m" else words
        path = words[0].replace(".", "/") + ".py" if module else words[0]
        if module and words[0] in ("pytest", "ruff"):
            return
        if module and (ROOT / path[:-3]).is_dir():
            path = f"{path[:-3]}/__main__.py"
        if path not in in_git():
            return self.fault(command, f"there is no {path}")
        flags = [word for word in words[1:] if word != "..."]
        parser = parser_of(path)
        if parser is None:
            if any(word.startswith("-") for word in flags):
                self.fault(command, "this script takes no flags")
        elif why := complaint(parser, flags, required="..." not in words and command.in_block):
            self.fault(command, why)
        self.paths(command, path, flags)

    def check_shell(self, command, path, words):
        if path not in in_git():
            return self.fault(command, f"there is no {path}")
        source = (ROOT / path).read_text(encoding="utf-8")
        if 'exec "$PYTHON"' in source:
            for inner in stubbed(path, words, command.variables, self.folder):
                self.check(Command(inner.words, {}, command.in_block))
        elif "pytest" not in source:
            for word in words:
                if word.startswith("-") and word.partition("=")[0] not in source:
                    self.fault(command, f"{path} knows no {word}")
        self.made.update(MADE_BY_SCRIPT.get(path, []))

    def paths(self, command, path, words):
        """Checks the paths among a Python script's words, and notes those that it makes."""
        makes, flag = [], ""
        for word in words:
            if word.startswith("--"):
                flag, equals, word = word.partition("=")
                if not equals:
                    continue
            made = (
                path.startswith("data/")
                and flag == "--data_dir"
                or path == "data/prepare/fetch.py"
                and flag == "--model"
            )
            if made or MADE_BY_FLAG.fullmatch(flag):
                makes.append(word.rstrip("/"))
            elif ("/" in word or PATH_FLAG.fullmatch(flag)) and word.strip("."):
                self.need(word, command)
        if (
            "--do_train" in words and "--model_save_dir" not in words
        ):  # the time in the name of such a run is the user's
            dates = re.findall(r"output/model_save-[\d:-]+", self.text)
            makes += dates
        if path == "scripts/reproduce/__main__.py":
            makes += ["output/reproduce", "results"]
        self.made.update(makes)

    def files_in_sentences(self):
        """A file of the code that a sentence or a table names, as tests/conftest.py, is there."""
        for path in re.findall(r"(?<![\w./-])[\w-]+(?:/[\w.-]+)+\.(?:py|sh|md)\b", prose(self.text)):
            if path.split("/")[0] in FOLDERS and not self.known(path):
                self.faults.append(f"there is no {path}")

    def flags_in_sentences(self):
        """A flag with its value, as in a table, is taken by some script.

        A flag alone is one of some script's.
        """
        parsers = [parser_of(path) for path in (*STAGES, "scripts/reproduce/__main__.py", *MODULES)]
        known = {option for parser in parsers for option in parser._option_string_actions}
        shell = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("*.sh"))
        for code in inline_code(self.text):
            if not code.startswith("--"):
                continue
            words = [word for word in shlex.split(code) if word != "..."]
            for word in words:
                if re.match("--[a-z]", word) and word.partition("=")[0] not in known and word not in shell:
                    self.faults.append(f"{code}: no script has {word}")
            values = [word for word in words if not word.startswith("--")]
            if values and not any(complaint(parser, words, required=False) is None for parser in parsers):
                self.faults.append(f"{code}: no script takes this")


FOLDERS = ("modeling", "data", "scripts", "tests", "docs")
STAGES = ("preprocess.py", "meta_teacher.py", "meta_teacher_eval.py", "meta_distill.py")
COMMAND = re.compile(r'parse(_args)?\(.*__name__ == "__main__"', re.S)
MODULES = tuple(
    sorted(
        str(path.relative_to(ROOT))
        for folder in ("data", "modeling")
        for path in (ROOT / folder).rglob("*.py")
        if COMMAND.search(path.read_text(encoding="utf-8"))
    )
) + (
    "tests/faults/fuzz.py",
    "tests/faults/guided.py",
    "tests/benchmark/__main__.py",
    "tests/benchmark/disk.py",
)


@functools.cache
def in_git():
    """Files and folders of the repository: what git does not ignore, or all where there is no git."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    files = (
        done.stdout.split("\n")
        if done.returncode == 0
        else [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    )
    files = {file for file in files if file and (ROOT / file).exists()}
    return files | {str(parent) for file in files for parent in pathlib.Path(file).parents} - {"."}


@functools.cache
def name_is_read(name):
    """Does a script or a test mention this environment variable?"""
    return any(
        re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))
        for path in in_git()
        if path.endswith((".py", ".sh")) and path != "tests/test_readme.py"
    )


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()).replace(
        " ", "-"
    )


def anchors(text):
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(text), re.M)}


def broken_links(text, page="README.md"):
    """Anchors without a heading, and relative links and images without a file, of a page at that path."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(text))
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code)
    targets += re.findall(r'(?:src|href)="([^"]+)"', without_code)
    broken = []
    for target in targets:
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(page), name)) if name else page
        there = {**PAGES, page: text}.get(path, "")
        if (name and path not in in_git()) or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


# --------------------------------------------------------------------------------------- tests


def faults(text, folder, made=()):
    return Checker(text, folder, made).faults


@pytest.mark.parametrize("page", PAGES)
def test_commands(tmp_path, page):
    """Every command of a page parses, and names what is there, was made before it, or is the user's own."""
    made = Checker(README, tmp_path).made if page != "README.md" else ()
    assert faults(PAGES[page], tmp_path, made) == []


def test_there_are_commands():
    """The check above has something to check."""
    assert len(commands_of(README)) >= 8
    assert sum(len(commands_of(text)) for text in PAGES.values()) >= 40


def test_the_reference_commands():
    """The four commands that the suite promises to run as they stand are in docs/training.md."""
    teacher = "output/model_save-2021-09-26-15:31:15/snapshot_best_mft_model_senti_dev_0.8691358024691358"
    bert, vocab = "uncased_L-12_H-768_A-12_oneflow", "--vocab_file uncased_L-12_H-768_A-12/vocab.txt"
    head, data = "--task_name senti", "--data_dir data/SENTI/"
    common = "--seed 42 --seq_length=128 --train_example_num 6480"
    training = (
        f"{data} --num_epochs 63 {common} --eval_example_num 720 --batch_size_per_device 24 "
        f"--eval_batch_size_per_device 48 --eval_every_step_num 100 {vocab} --learning_rate 5e-5 "
        "--resave_ofrecord --do_train --do_eval"
    )
    inference = f"{data} --num_epochs 4 {common}"
    for command in (
        f"python3 preprocess.py {head} --model_load_dir {bert} {inference} {vocab} --resave_ofrecord",
        f"python3 meta_teacher.py {head} --model_load_dir {bert} {training}",
        f"python3 meta_teacher_eval.py {head} --model_load_dir {teacher} {inference} "
        f"--eval_batch_size_per_device 1 {vocab} --resave_ofrecord",
        f"python3 meta_distill.py {head} --student_model {bert} --teacher_model {teacher} {training}",
    ):
        assert f"\n{command}\n" in PAGES["docs/training.md"]


def test_the_front_page_is_short():
    """README.md has at most 150 lines, its first command within 25, and leads to every page of docs/."""
    lines = README.splitlines()
    assert len(lines) <= 150 and "```bash" in lines[:25]
    assert [page for page in PAGES if page != "README.md" and f"]({page})" not in README] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_first_line_says_the_purpose(page):
    """A page begins with its title, an empty line and a sentence."""
    title, empty, purpose = PAGES[page].splitlines()[:3]
    assert title.startswith("# ") and empty == "" and re.match(r"[A-Z].*[\w.,)]$", purpose)


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    assert broken_links(PAGES[page], page) == []


def test_the_size_of_the_downloads_is_one_number():
    """In README.md and in the scripts that fetch them."""
    texts = [README, *((ROOT / "scripts" / name).read_text() for name in ("setup.sh", "demo.sh"))]
    sizes = [
        re.findall(r"([\d.]+)(?: GB of (?:downloads|packages)| for the downloads)", text) for text in texts
    ]
    assert all(sizes) and len({size for each in sizes for size in each}) == 1, sizes


def test_a_package_that_lists_its_modules_lists_all():
    """In its docstring, as `name.py`."""
    for folder in ("data", "modeling", "scripts"):
        for path in (ROOT / folder).glob("**/__init__.py"):
            modules = {each.name for each in path.parent.glob("*.py")} - {path.name, "__main__.py"}
            named = {*re.findall(r"\b\w+\.py\b", path.read_text(encoding="utf-8"))}
            assert not named & modules or modules <= named, (path, modules - named)


def test_the_picture():
    assert "](scripts/pipeline.svg)" in README


@pytest.mark.parametrize("page", PAGES)
def test_no_absolute_paths(page):
    assert ABSOLUTE.findall(PAGES[page]) == []


@pytest.mark.parametrize("page", PAGES)
def test_other_blocks(page):
    """Python blocks compile, and JSON blocks are JSON."""
    for code in blocks(PAGES[page], "python"):
        ast.parse(code)
    for code in blocks(PAGES[page], "json"):
        json.loads(code)


def test_there_are_other_blocks():
    """README shows the student in transformers, docs/data.md a task.json."""
    assert blocks(README, "python") and blocks(PAGES["docs/data.md"], "json")


@pytest.mark.parametrize("path", (*STAGES, "scripts/reproduce/__main__.py", *MODULES))
def test_help(path):
    """--help of each command can be written."""
    assert "usage: " in parser_of(path).format_help()


FETCH = "python3 -m data.prepare.fetch --model models/MiniLM --data_dir data/DEMO"
STAGE1 = "python3 preprocess.py --task_name demo --data_dir data/DEMO --model_load_dir models/MiniLM"
GOOD = (
    "Texts.\n\n```bash\nbash scripts/setup.sh && source .venv/bin/activate\n"
    f"{FETCH} && \\\n  {STAGE1} --seq_length=64  # a comment's --flag\n"
    "TASK_NAME=demo DATA_DIR=data/DEMO bash scripts/1_preprocess.sh\n```\n"
)


@pytest.mark.parametrize(
    "old, new, why",
    [
        ("--seq_length", "--seq_lenght", "--seq_lenght"),
        ("--seq_length=64", "--seq_length=none", "expected a whole number"),
        ("preprocess.py --task", "preproces.py --task", "there is no preproces.py"),
        ("data.prepare.fetch", "data.fech", "there is no data/fech.py"),
        ("1_preprocess.sh", "1_preproces.sh", "there is no scripts/1_preproces.sh"),
        ("1_preprocess.sh", "setup.sh --tset", "knows no --tset"),
        ("bash scripts", "sbatch scripts", "unknown program"),
        ("TASK_NAME=", "TASK_NAM=", "nothing reads TASK_NAM"),
        (
            "--model_load_dir models/MiniLM",
            "--model_load_dir models/Mini",
            "nothing before it makes models/Mini",
        ),
        (
            "--model_load_dir models/MiniLM",
            "--model_load_dir sorted_data_acl",
            "nothing before it makes sorted_data_acl",
        ),  # not introduced
        ("--model_load_dir models/MiniLM", "--model_load_dir FOLDER", "nothing before it makes FOLDER"),
        ("--model_load_dir models/MiniLM", "--model_load_dir /models", "absolute"),
        (" --data_dir data/DEMO &&", " &&", "required: --data_dir"),
        (f"{FETCH} && \\\n", "", "nothing before it makes data/DEMO"),
        ("bash scripts/1_preprocess.sh", "scripts/reproduce.sh --rows tabel", "tabel"),
        ("bash scripts/1_preprocess.sh", "scripts/reproduce.sh --dryrun", "--dryrun"),
        ("source .venv/bin/activate", "true", "nothing before it activates .venv"),
        ("Texts.", "See tests/test_reedme.py.", "there is no tests/test_reedme.py"),
        ("Texts.", "`--data_porton 0.05`", "--data_porton"),
        ("Texts.", "`--data_portion 5`", "no script takes this"),
        ("Texts.", "`python3 meta_distill.py --temprature 2`", "--temprature"),
        (
            "Texts.",
            "`python3 -m data.prepare.mnli --source multinli --data_dir data/MNLI`",
            "no command makes multinli",
        ),
    ],
)
def test_faults_are_told(tmp_path, old, new, why):
    """A page with one fault is told of that fault, and the same page without it of none."""
    assert faults(GOOD, tmp_path) == []
    assert old in GOOD
    found = faults(GOOD.replace(old, new), tmp_path)
    assert found and why in " ".join(found)


def test_link_faults_are_told():
    text = (
        "## The `four` stages, by hand\n[a](#the-four-stages-by-hand) [b](#no) ![c](scripts/no.svg) "
        "[d](README.md) [e](https://a.b/c) [f](docs/data.md#models) [g](docs/data.md#no)\n"
    )
    assert broken_links(text) == ["#no", "scripts/no.svg", "docs/data.md#no"]
    assert broken_links("[a](data.md) [b](docs/data.md)", "docs/made_up.md") == ["docs/data.md"]
    assert (
        ABSOLUTE.search("`/home/me/x`")
        and ABSOLUTE.search("~/x")
        and not ABSOLUTE.search("a/tmp/x https://a/tmp/")
    )
