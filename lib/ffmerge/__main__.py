"""The command line: `python -m ffmerge compress · inspect · export · methods`."""

import argparse
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

from ffmerge.catalogue import check_method
from ffmerge.cli import listing

ABOUT = """\
Make a transformer smaller by its feed-forward (FF) sublayers: prune their neurons, or let
several layers share one. Nothing is trained; some text or images of the model's own kind do.

  python -m ffmerge methods                                   what there is, and how good it is
  python -m ffmerge compress MODEL --remove 1/3 --data notes.txt --out small
  python -m ffmerge inspect small                             what is shared, how large it is
  python -m ffmerge export small plain                        for tools that do not know ffmerge
"""
COMPRESS = """\
MODEL is read, never changed. Of the data one part calibrates, one chooses among a method's
candidates (which window of layers is to share), and one, which nothing else has seen, checks the
result: perplexity for text, and else the error of the outputs (0 %: none; 100 %: the mean would do
as well). Memory is announced before the work starts.
"""
EPILOG = """\
examples:
  python -m ffmerge compress openai-community/gpt2 --remove 1/3 --data notes/ --out small
  python -m ffmerge compress model.gguf --remove 1/2 --data lines.jsonl --column body --out small
  python -m ffmerge compress model.gguf --remove 1/3 --data code/ --data mails/ --out small
  python -m ffmerge compress google/vit-base-patch16-224 --remove 1/4 --data photos/ --out small
  python -m ffmerge compress Helsinki-NLP/opus-mt-zh-en --remove 1/3 --method permute \\
      --data pairs.jsonl --column zh --target en --out small

What is pruned keeps the kinds of data that it was calibrated on: name all that matter.
The default method keeps as many neurons in every sublayer, so that any tool opens the result;
neurons_obs_budget kept more in the contest where a half went, and needs ffmerge to be opened.
Exit codes: 0 done, 1 it cannot be (one sentence says why), 2 the command is not understood.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its help is what teaches them."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m ffmerge", description=ABOUT, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser(
        "compress",
        help="compress a model, check it, save it",
        description=COMPRESS,
        epilog=EPILOG,
        formatter_class=raw,
    )
    one.add_argument("model", metavar="MODEL", help="hub id, folder, or GGUF file")
    one.add_argument(
        "--remove",
        type=read_share,
        required=True,
        metavar="SHARE",
        help="of the FF sublayers, or of neurons that weigh as much: 1/3",
    )
    one.add_argument(
        "--data",
        required=True,
        action="append",
        help="text or JSONL files, images (a file, a folder, a pattern), or a data set of the hub; "
        "given several times, all are read in turn",
    )
    one.add_argument("--out", type=Path, required=True, help="a new folder")
    one.add_argument(
        "--method",
        type=read_method,
        default="neurons_obs_refit",
        help="see `methods`; default: %(default)s",
    )
    one.add_argument("--column", help="of JSONL or a data set: what is read (default: text, image)")
    one.add_argument("--target", help="of an encoder-decoder's data: the column that is written")
    one.add_argument(
        "--tokens", type=read_count, help="to calibrate with (default: 50 for each of d_ff neurons)"
    )
    one.add_argument(
        "--held-out",
        type=read_count,
        default=8192,
        metavar="TOKENS",
        help="to choose with, and as many to check with (default: %(default)s)",
    )
    one.add_argument(
        "--context",
        type=read_count,
        metavar="TOKENS",
        help="that are read at once (default: 512, or the model's limit)",
    )
    one.add_argument("--seed", type=read_seed, default=0, help="of the order of the data")
    two = commands.add_parser("inspect", help="tell what a model shares and where it came from")
    two.add_argument("folder", metavar="DIR", type=Path)
    three = commands.add_parser("export", help="write a model that opens without ffmerge")
    three.add_argument("folder", metavar="DIR", type=Path)
    three.add_argument("out", metavar="OUT", type=Path)
    commands.add_parser("methods", help="list all methods with their results")
    return parser


def read_share(text: str) -> Fraction:
    """A share such as 1/3 or 0.25."""
    try:
        share = Fraction(text if len(text) < 20 and "e" not in text.lower() else 0)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; valid are such as 1/3 and 0.25")
    return share


def read_method(text: str) -> str:
    """The name of a method."""
    try:
        check_method(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def read_count(text: str, least: int = 1) -> int:
    """A whole number above 0, or from another one on, of 32 bits."""
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) < 2**32:
        told = f"valid are whole numbers from {least} on, below 2**32"
        raise argparse.ArgumentTypeError(f"{text!r} is no count; {told}")
    return int(text)


read_seed = partial(read_count, least=0)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; sys.argv's if left out.

    Returns:
        The exit code: 0, or 1 after an error. A command that is not understood exits with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a pipe may know neither → nor −
    given = vars(build_parser().parse_args(arguments))
    command = given.pop("command")
    try:
        _run(command, given)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Exception as error:  # a library's own, of a model or data that none here has met
        told = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: {command} met what it does not know ({told})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was saved", file=sys.stderr)
        return 130
    return 0


def _run(command: str, given: dict) -> None:
    if command == "methods":
        listing.list_all()
        return
    import transformers  # seconds, which neither --help nor methods need

    from ffmerge.cli import commands, compressing

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if command == "compress":
        compressing.compress(compressing.Request(**given))
    elif command == "inspect":
        commands.inspect(**given)
    else:
        commands.export(**given)


if __name__ == "__main__":
    sys.exit(main())
