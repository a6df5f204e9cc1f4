"""Flag groups, each flag declared once.

A script names its groups: `parse("what it does", task, model, training)`.
"""

import argparse
import importlib.util
import os
import pathlib
import sys

from util import UserError, end_at_once_on_signals, entry, get_world_size, read_json, read_version


class Help(argparse.HelpFormatter):
    """Shows the default of a flag that has one, after its help."""

    def _get_help_string(self, action):
        return (
            action.help
            if action.default in (None, False, argparse.SUPPRESS)
            else f"{action.help} (default: %(default)s)"
        )


class Parser(argparse.ArgumentParser):
    """Flags are spelt out, defaults stand in the help, and a mistake is one sentence with exit code 2."""

    def __init__(self, description, formatter_class=Help, **options):
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=formatter_class, **options
        )

    def parse_known_args(self, args=None, namespace=None):
        self.words = sys.argv[1:] if args is None else args
        for word in self.words:
            if not word.isascii() and os.fsencode(word).decode("utf-8", "replace") != word:
                raise UserError(
                    f"{word!a}: this name is not UTF-8, and could not be written into logs: rename it."
                )
        return super().parse_known_args(args, namespace)

    def error(self, message):
        unknown = [
            word
            for word in self.words
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions
        ]
        # Argparse says first what is missing, which is often what is unknown, misspelt.
        if unknown and "required" in message:
            message = f"unrecognized arguments: {' '.join(unknown)}"
        raise UserError(f"{self.prog}: {message}; '{self.prog} --help' lists the flags.")


def module_parser(description, module=None):
    """The Parser of a command `python3 -m module`, or of a script; its description is shown as it stands."""
    return Parser(description, argparse.RawDescriptionHelpFormatter, prog=module and f"python3 -m {module}")


def parse(description, *groups, argv=None, prog=None):
    """The flags of the given groups, checked.

    Args:
        description: what the script does, for --help.
        groups: functions that add flags to a parser, such as `task` below.
        argv: the words of the command line; None: those of this process.
        prog: what the help and mistakes call the command; None: the name of its file.
    Returns:
        the flags, and beside them `defaults` and `changed`: {name: its default}, {name: its value where that
        is another}.
    Raises:
        UserError: an unknown or abbreviated flag, a value of the wrong type or out of range.
    """
    parser, words = Parser(description, prog=prog), sys.argv[1:] if argv is None else argv
    parser.add_argument("--version", action="version", version=read_version())
    for group in (*groups, flag_file):
        group(parser)
    first = Parser(description, prog=prog, add_help=False)
    flag_file(first)
    path = first.parse_known_args(words)[0].config
    args = parser.parse_args([*file_words(parser, path), *words] if path else words)
    missing = [f"--{name}" for name in ("task_name", "data_dir") if getattr(args, name, "") is None]
    if missing and not getattr(args, "do_predict", False):
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if getattr(args, "resume", False) and not args.resume_from and not getattr(args, "do_predict", False):
        last = pathlib.Path(require_flag(args, "model_save_dir"), "snapshot_last")
        args.resume_from = str(last) if last.exists() else None
    if getattr(args, "resume_from", None) and pathlib.Path(args.resume_from, "flags.json").is_file():
        args.resume_from = str(pathlib.Path(args.resume_from, "snapshot_last"))
    defaults = {name: parser.get_default(name) for name in vars(args)}
    args.changed = {name: value for name, value in vars(args).items() if value != defaults[name]}
    args.defaults = defaults
    return args


def check_flags(name, description, *groups):
    """Ends the program at --help or a mistake in its flags, where `name`, a script's __name__, is __main__.

    In a launched rank there is nothing to check: whoever launched it has done so.
    """
    if name == "__main__" and get_world_size() == 1:
        entry(lambda: parse(description, *groups))()
        end_at_once_on_signals()


def require_flag(args, name):
    """The value of a flag that this use of a script cannot do without."""
    if getattr(args, name) is None:
        raise UserError(f"--{name} is needed here; --help says what it names.")
    return getattr(args, name)


# --------------------------------------------------------------------------------------- a file of flags


def flag_file(parser):
    parser.add_argument(
        "--config",
        metavar="FILE",
        help='JSON file of flags, such as {"num_epochs": 4, "do_train": true} or the flags.json of a '
        "run; the command line wins, but cannot take back a flag that is on there",
    )


def file_words(parser, path):
    """The words of the command line for the flags in the JSON file `path`; null: a flag that is not given.

    Raises:
        UserError: a flag that the parser does not know, or a value that is not of its type or range; the
            sentence has file and flag.
    """
    flags, words = read_json(path, "the file of flags"), []
    for name, value in flags.items():
        action = parser._option_string_actions.get(f"--{name}")  # argparse has no public list of its flags
        if action is None or name in ("help", "config"):
            raise UserError(
                f"--config {path}: there is no flag {name!r:.60} for it to set; "
                f"'{parser.prog} --help' lists the flags."
            )
        try:
            words += [] if value is None else file_word(name, action, value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(
                f"--config {path}: --{name}: {error}; '{parser.prog} --help' says what it takes."
            ) from None
    return words


def file_word(name, action, value):
    """The words for one flag of a file; none for a flag that is off.

    ValueError, ArgumentTypeError: it cannot have this value.
    """
    if isinstance(value, list) and action.nargs == "+":
        return list_words(name, action, value)
    if action.nargs in (0, "?"):  # it is there or not
        if not isinstance(value, bool):
            raise ValueError(f"found {value!r:.60}, expected true or false")
        return [f"--{name}={str(value).lower()}"] if action.type is truth else [f"--{name}"] * value
    expected = TYPES.get(getattr(action.type, "__name__", "str"), (int, str))
    if isinstance(value, bool) or not isinstance(value, expected):
        raise ValueError(f"found {value!r:.60}, expected {' or '.join(NAMES[kind] for kind in expected)}")
    converted = (action.type or str)(str(value))
    if action.choices and converted not in action.choices:
        raise ValueError(f"found {value!r:.60}, expected one of {', '.join(action.choices)}")
    return [f"--{name}={value}"]


def list_words(name, action, values):
    """The words for a flag of several values; ValueError, ArgumentTypeError: it cannot have these."""
    if not values:
        raise ValueError("found [], expected at least one value in the list")
    words = []
    for value in values:
        if isinstance(value, list):
            raise ValueError(f"found {value!r:.60} in the list, expected a value")
        words.append(file_word(name, action, value)[0].partition("=")[2])
        if words[-1].startswith("-"):  # of several words, argparse would take it for another flag
            raise ValueError(f"found {value!r:.60} in the list, expected a value that begins without '-'")
    return [f"--{name}", *words]


TYPES = {"int": (int,), "float": (int, float), "str": (str,)}  # of JSON, by the name of an argparse type
NAMES = {int: "a whole number", float: "a number", str: "a string"}


# --------------------------------------------------------------------------------------- types


def number(kind, low, high=None, open_low=False):
    """An argparse type: a number of `kind` (int or float) from `low` to `high`; `open_low`: above `low`."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r:.60}, expected {NAMES[kind]}") from None
        largest = sys.float_info.max if high is None else high
        if not (low < value if open_low else low <= value) or not value <= largest:
            limits = f"above {low}" if open_low else f"of at least {low}"
            raise argparse.ArgumentTypeError(
                f"{text} is not {limits}" + (f" and at most {high}" if high is not None else "")
            )
        return value

    convert.__name__ = kind.__name__
    return convert


def truth(text):
    """An argparse type: true or false, in any case of letters, also 1 or 0."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is neither true nor false")
    return text.lower() in ("true", "1")


def auto_or_count(text):
    """An argparse type: `auto`, or a number from 1."""
    try:
        return text if text == "auto" else count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected auto or a whole number of at least 1"
        ) from None


count = number(int, 1)
natural = number(int, 0)
weight = number(float, 0.0)
share = number(float, 0.0, 1.0)


def options(kind, args, **more):
    """The typed options `kind`, a NamedTuple whose fields are flags, from the flags `args`.

    A flag that this command does not have keeps the default of its field. more: fields that are no flags.
    """
    return kind(**{name: getattr(args, name) for name in kind._fields if hasattr(args, name)}, **more)


# --------------------------------------------------------------------------------------- groups


def task(parser):
    group = parser.add_argument_group("task and records")
    group.add_argument(
        "--task_name",
        help="name of the task, needed for all but prediction: senti, mnli, or the name in the data folder's "
        "task.json",
    )
    group.add_argument(
        "--data_dir",
        help="folder with train.tsv, dev.tsv, test.tsv, and task.json for a task of your own; needed for "
        "all but prediction",
    )
    group.add_argument("--ofrecord_dir", help="folder of the records (default: DATA_DIR/ofrecord)")
    group.add_argument(
        "--resave_ofrecord",
        action="store_true",
        help="write the records again from the TSV files; content that did not change keeps its bytes and "
        "its scores",
    )
    group.add_argument(
        "--seq_length",
        "--max_seq_length",
        type=number(int, 3),
        default=128,
        help="longest text in tokens, [CLS] and [SEP] included",
    )
    group.add_argument(
        "--truncate",
        choices=("head", "head_tail"),
        default="head",
        help="what is kept of a longer text, the same in all stages: its beginning; or a quarter from its "
        "beginning and three from its end, where reviews have their verdict (not for pairs of texts)",
    )
    group.add_argument(
        "--vocab_file", help="WordPiece vocabulary (default: vocab.txt or tokenizer.json in the model folder)"
    )
    case(group)
    group.add_argument("--seed", type=natural, default=42, help="every random draw is a function of it")


def case(group):
    group.add_argument(
        "--do_lower_case",
        type=truth,
        nargs="?",
        const=True,
        metavar="true|false",
        help="whether texts are lower-cased (default: as the model folder says; where it does not, "
        "they are unless a token of the vocabulary has a capital letter)",
    )


def selection(parser):
    group = parser.add_argument_group(
        "which training examples (in this order; prototypes and scores are made of the same ones)"
    )
    group.add_argument(
        "--train_example_num",
        type=count,
        help="the first N training examples (default: all; more than there are is an error)",
    )
    group.add_argument("--domain", help="only this domain: its training and its dev examples")
    group.add_argument("--exclude_domain", help="leave this domain out of training and dev; test keeps it")
    group.add_argument(
        "--data_portion",
        type=number(float, 0.0, 1.0, open_low=True),
        default=1.0,
        help="share of the training examples, stratified by domain and label, at least one of each; "
        "which ones they are depends on --seed: give the same one to every stage that has this flag",
    )


def model(parser):
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_load_dir",
        "--model_name_or_path",
        help="folder with config.json and model.safetensors: a Hugging Face BERT or a snapshot, "
        "or a run folder, which stands for its best snapshot",
    )


def cpu_threads(group):
    group.add_argument(
        "--cpu_threads",
        type=auto_or_count,
        default="auto",
        metavar="auto|N",
        help="threads that share the work on a CPU; the results do not depend on how many; auto: "
        "OMP_NUM_THREADS where that is set, else one to a core",
    )


def device(parser):
    group = parser.add_argument_group("device (one GPU, or the CPUs of one machine) and ranks")
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where it is there"
    )
    group.add_argument(
        "--encoder",
        choices=("auto", "oneflow", "cpu"),
        default="auto",
        help="who does the work: cpu, numpy on all cores; oneflow, OneFlow's own operators, slow on a CPU; "
        "auto: cpu on a CPU",
    )
    cpu_threads(group)
    ranks(group)
    group.add_argument(
        "--eval_batch_size_per_device", type=count, default=48, help="examples in a batch of inference"
    )


def ranks(group):
    """Flags of a run that several processes, GPUs or machines share."""
    group.add_argument(
        "--cpu_processes",
        type=count,
        metavar="N",
        help="ranks that share the work on the CPUs of a machine, in place of threads (default: 1; "
        "a resumed run has those that it had)",
    )
    group.add_argument(
        "--gpu_num_per_node", type=count, default=1, help="GPUs to use on each machine, one rank to a GPU"
    )
    group.add_argument(
        "--num_nodes",
        type=count,
        default=1,
        help="machines that run this command together, over the same files",
    )
    group.add_argument("--node_rank", type=natural, default=0, help="which of them this one is, from 0")
    group.add_argument("--master_addr", default="127.0.0.1", help="address of machine 0")
    group.add_argument(
        "--master_port",
        type=number(int, 1, 65535),
        help="free port of machine 0 (default: any on one machine, else 29500)",
    )
    group.add_argument(
        "--network_timeout",
        type=number(float, 1.0),
        default=120,
        metavar="SECONDS",
        help="a run over several machines ends when one of them was silent for so long, "
        "or does not come when it starts",
    )


def inference(parser):
    group = parser.add_argument_group("inference")
    group.add_argument(
        "--num_epochs",
        "--num_train_epochs",
        type=count,
        default=1,
        help="accepted so that one set of flags serves all stages; this stage reads the data once all the "
        "same",
    )


def training(parser):
    group = parser.add_argument_group(
        "training",
        "Old names are understood: --loss_print_every_n_iter is --log_every_step_num, "
        "--model_save_every_n_iter is --save_every_step_num; --save_last_snapshot, "
        "--train_data_prefix and --train_data_part_num say what holds anyhow, and are ignored.",
    )
    group.add_argument("--do_train", action="store_true", help="train")
    group.add_argument(
        "--do_eval",
        action="store_true",
        help="evaluate on dev while training, keep the best snapshot, and test it at the end",
    )
    group.add_argument(
        "--model_save_dir", "--output_dir", help="run folder (default: output/model_save-YYYY-MM-DD-HH:MM:SS)"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --model_save_dir where it was stopped, if there is one",
    )
    group.add_argument(
        "--resume_from",
        metavar="DIR",
        help="go on with the run in this folder, or with that of this snapshot_last",
    )
    schedule(group)
    optimizer(group)
    evaluation(group)
    snapshots_and_logs(group)
    old_names(group)


def schedule(group):
    """How long a run is, and how many examples a step takes."""
    group.add_argument(
        "--num_epochs", "--num_train_epochs", type=count, default=3, help="passes over the training examples"
    )
    group.add_argument(
        "--max_steps",
        type=count,
        help="steps of the run, in place of --num_epochs: the schedule ends with them",
    )
    group.add_argument(
        "--batch_size_per_device", type=count, default=24, help="examples of a training step on one device"
    )
    group.add_argument(
        "--gradient_accumulation_steps",
        type=count,
        default=1,
        help="batches whose gradients a step adds up: it is one of a batch of so many times the size, "
        "in the memory of one",
    )


def optimizer(group):
    """How a step changes the weights."""
    group.add_argument(
        "--learning_rate", type=number(float, 0.0, open_low=True), default=5e-5, help="peak learning rate"
    )
    group.add_argument(
        "--warmup_proportion",
        "--warmup_ratio",
        type=share,
        default=0.1,
        help="share of the steps with a rising learning rate",
    )
    group.add_argument(
        "--lr_schedule",
        "--lr_scheduler_type",
        choices=("linear", "cosine", "constant"),
        default="linear",
        help="the learning rate after these steps: a line or half a cosine down to 0, or its peak",
    )
    group.add_argument(
        "--weight_decay_rate", type=weight, default=0.01, help="AdamW's decay, not on biases and LayerNorm"
    )
    group.add_argument(
        "--max_grad_norm",
        type=number(float, 0.0, open_low=True),
        default=1.0,
        help="gradients are clipped to this norm",
    )


def evaluation(group):
    """When a model is evaluated on dev, and what follows from it."""
    group.add_argument("--eval_example_num", type=count, help="the first N dev examples (default: all)")
    group.add_argument(
        "--eval_every_step_num", type=count, default=100, help="steps from one evaluation on dev to the next"
    )
    group.add_argument(
        "--early_stopping_patience",
        type=count,
        metavar="N",
        help="the run ends after N evaluations in a row that are no better on dev, by --select_by (default: "
        "it does not)",
    )
    group.add_argument(
        "--select_by",
        choices=("accuracy", "domain_average", "macro_f1"),
        default="accuracy",
        help="the figure on dev that says which snapshot is best, and when to stop early; "
        "macro_f1 where classes are rare, domain_average where domains are small. "
        "The name of the snapshot has its accuracy all the same",
    )
    group.add_argument(
        "--save_total_limit",
        type=count,
        default=1,
        help="best snapshots to keep, each of another accuracy on dev; best.json names the best of them",
    )
    group.add_argument(
        "--class_weights",
        choices=("none", "balanced"),
        default="none",
        help="balanced: an example of a rare class counts the more, so that all classes weigh the same; "
        "in stage 2 it divides the instance weights by their sum in the class (not raw ones), "
        "in stage 4 it weighs the hard labels; they average 1",
    )


def snapshots_and_logs(group):
    """How often a run leaves something on disk."""
    group.add_argument(
        "--save_every_step_num",
        type=count,
        default=100,
        help="steps from one snapshot_last to the next: what a kill can cost",
    )
    group.add_argument(
        "--log_every_step_num", type=count, default=20, help="steps from one log line to the next"
    )
    group.add_argument(
        "--log_dir",
        type=board_folder,
        help="folder for TensorBoard's event files, with every number of metrics.jsonl; needs "
        "tensorboardX, or torch and tensorboard",
    )


def card(parser):
    group = parser.add_argument_group(
        "model card",
        "What the README.md of a snapshot says of the model that it was trained from; "
        "by default what the README.md of that model's folder says.",
    )
    group.add_argument(
        "--card_base_model", metavar="NAME", help="its name on the hub (default: that of its folder)"
    )
    group.add_argument("--card_license", metavar="NAME", help="its license, as in apache-2.0")
    group.add_argument("--card_language", metavar="CODE", help="its language, as in en")


class Ignored(argparse.Action):
    """A flag that is accepted and changes nothing."""

    def __call__(self, parser, namespace, values, option_string=None):
        pass


class Unbuilt(argparse.Action):
    """A flag that can only be switched off."""

    def __call__(self, parser, namespace, values, option_string=None):
        if str(values).lower() not in ("false", "0"):
            raise UserError(f"{option_string}: half precision is not built: leave it out.")


def old_names(group):
    """Flags of the scripts that these follow; they do not stand in the help one by one."""
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    group.add_argument("--loss_print_every_n_iter", dest="log_every_step_num", type=count, **hidden)
    group.add_argument("--model_save_every_n_iter", dest="save_every_step_num", type=count, **hidden)
    group.add_argument("--save_last_snapshot", nargs="?", action=Ignored, **hidden)  # it is saved
    for name in ("--train_data_prefix", "--train_data_part_num"):  # the manifest of the records says it
        group.add_argument(name, action=Ignored, **hidden)
    group.add_argument("--use_fp16", nargs="?", action=Unbuilt, **hidden)


def prototypes(parser):
    group = parser.add_argument_group("prototype score")
    group.add_argument(
        "--alpha",
        type=share,
        default=0.5,
        help="weight of the example's own domain against the other domains",
    )


def teacher(parser):
    group = parser.add_argument_group("meta-teacher")
    group.add_argument(
        "--domain_loss_weight",
        type=weight,
        default=0.5,
        help="gamma1, weight of the domain-corruption loss; 0: no such head",
    )
    group.add_argument(
        "--weight_scaling",
        choices=("mean", "spread", "raw", "none"),
        default="mean",
        help="the instance weight made of the prototype score: mean: divided by its mean, spread: "
        "stretched or compressed to --weight_spread, raw: as it is, none: 1",
    )
    group.add_argument(
        "--weight_spread",
        type=weight,
        default=0.5,
        help="standard deviation of the weights with --weight_scaling spread",
    )
    group.add_argument(
        "--class_heads",
        choices=("shared", "per_domain"),
        default="shared",
        help="one class head, or one for each domain, as a multi-task teacher has",
    )


def knowledge(parser):
    group = parser.add_argument_group("knowledge")
    group.add_argument(
        "--knowledge_dir",
        nargs="+",
        help="folder of the knowledge, in stage 4 one for each teacher "
        "(default: OFRECORD_DIR/knowledge-<start of the teacher's hash>)",
    )
    group.add_argument(
        "--unlabelled_file",
        help="a TSV with more texts, without labels and with or without the domain, which the teacher labels "
        "softly: the same file in stages 3 and 4",
    )


def extraction(parser):
    group = parser.add_argument_group("what to extract")
    group.add_argument(
        "--knowledge_layers",
        type=layer_list,
        metavar="LAYERS|none",
        help="teacher layers, counted from 1, as in 2,4,6; none: answers and vectors alone, "
        "a few kB an example (default: min(3, layers), evenly spaced, ending with the last)",
    )
    group.add_argument(
        "--attention_heads",
        choices=("mean", "all"),
        default="mean",
        help="scores averaged over the heads, or of each head",
    )
    group.add_argument("--hidden_states", action="store_true", help="also the hidden states of these layers")
    group.add_argument(
        "--knowledge_vectors",
        choices=("float32", "float16"),
        default="float32",
        help="how representation and domain feature are stored; float16 takes half the room",
    )


def distillation(parser):
    group = parser.add_argument_group("meta-distillation")
    group.add_argument("--student_model", help="folder of the BERT that the student starts from")
    group.add_argument(
        "--student_layers",
        type=count,
        help="take N evenly spaced layers of that folder (default: all of them)",
    )
    group.add_argument(
        "--teacher_model",
        nargs="+",
        help="the meta-teacher's snapshot or run folder, whose knowledge stage 3 wrote; "
        "its weights are not loaded. Several: the student learns from their mean. "
        "Not needed to learn from hard labels alone",
    )
    group.add_argument(
        "--teacher_weights",
        nargs="+",
        type=number(float, 0.0, open_low=True),
        metavar="W",
        help="how much each of several teachers counts in the mean (default: all the same)",
    )
    learning(group)
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="divide the classifier of the best snapshot by a temperature that is fitted on dev, "
        "so that its probabilities say how often it is right; labels stay as they are. "
        "A finished run is calibrated by the same command with --resume",
    )


def learning(group):
    """What the student learns from its teacher's knowledge, and how."""
    group.add_argument(
        "--intermediate_epochs",
        type=natural,
        default=0,
        help="two phases: the first N of num_epochs match layers and features alone, the rest logits; 0: "
        "all at once",
    )
    group.add_argument(
        "--temperature",
        type=number(float, 0.0, open_low=True),
        default=1.0,
        help="T of the soft cross-entropy",
    )
    group.add_argument(
        "--attention_match",
        choices=("raw", "centred"),
        default="raw",
        help="centred: each row of scores minus its mean, which the softmax does not see",
    )
    group.add_argument(
        "--expertise_weight",
        choices=("lambda", "spread", "none"),
        default="lambda",
        help="the domain-expertise weight of an example: lambda, as the paper has it, which varies little; "
        "spread: lambda stretched or compressed to --expertise_spread; none: 1 for all",
    )
    group.add_argument(
        "--expertise_spread",
        type=weight,
        default=0.5,
        help="standard deviation of the weights with --expertise_weight spread, which average 1",
    )


def prediction(parser):
    group = parser.add_argument_group(
        "prediction",
        "Labels for raw texts from a snapshot alone: it takes no data, task or teacher. One process does "
        "it; --resume, --vocab_file, --do_lower_case, --device, --encoder, --cpu_threads and "
        "--eval_batch_size_per_device count, flags of ranks, records and training do not.",
    )
    group.add_argument(
        "--do_predict",
        action="store_true",
        help="label the texts of --predict_file with the snapshot that --model_load_dir names; "
        "meta_distill.py has that flag for this alone",
    )
    texts(group)
    group.add_argument(
        "--output_file",
        metavar="FILE",
        help="the answers in the form of the texts, lines in TSV: idxs, the other columns, the label, "
        "the probability of each label; whole or not at all, what is there is replaced; "
        "--resume goes on after a stop (default: standard output)",
    )
    group.add_argument(
        "--min_confidence",
        type=share,
        metavar="P",
        help="leave the label empty where its probability, as the answers show it, is below P "
        "(default: label every text)",
    )


def texts(group):
    """What is to be labelled."""
    group.add_argument(
        "--predict_file",
        metavar="FILE|-",
        help="texts in UTF-8, perhaps packed (.gz): .tsv, .csv and .jsonl have named columns or keys, "
        "any other file a text to a line without a header, two columns with a tab between them in a task of "
        "pairs; -: standard input",
    )
    group.add_argument(
        "--predict_format",
        choices=("auto", "lines", "tsv", "csv", "jsonl"),
        default="auto",
        help="what --predict_file is; auto: as its name ends, else lines",
    )
    group.add_argument(
        "--text_column",
        nargs="+",
        metavar="NAME",
        help="the column of the text, or the two of a pair (default: those of the snapshot's task)",
    )


def board_folder(text):
    """An argparse type: a folder for event files, and a package that writes them."""
    found = importlib.util.find_spec
    if not (found("tensorboardX") or found("tensorboard") and found("torch")):
        raise argparse.ArgumentTypeError(
            "no package that writes event files is installed: run 'pip install tensorboardX', "
            "or leave this flag out"
        )
    return text


def layer_list(text):
    """An argparse type: rising layer numbers from 1, as in `2,4,6`, or `none`."""
    if text == "none":
        return ()
    try:
        layers = [int(word) for word in text.split(",")]
    except ValueError:
        layers = []
    if not layers or min(layers) < 1 or layers != sorted(set(layers)):
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected none or a rising list of layer numbers from 1, such as 2,4,6"
        )
    return tuple(layers)
